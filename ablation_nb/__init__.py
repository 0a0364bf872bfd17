"Which parts of a Transformer matter, by how much, and how sure one can be."
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads, so before any module of ours can load it: idle threads that spin made steps up to 20 times slower on two shared cores
