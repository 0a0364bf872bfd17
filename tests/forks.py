"""Commands of the package as forks of one process that has imported what they need of other libraries.

An interpreter takes five seconds of a core to import torch, pandas and Jupyter, and most tests start several.
A fork has them at once. All else is as in a terminal: it is a process of its own, with its directory, environment,
signals and pipes, and it imports the package and arms.py anew, from where these say.
"""
import atexit
import contextlib
import fcntl
import gc
import inspect
import json
import os
import runpy
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import traceback
import weakref
from importlib import import_module

from filelock import FileLock

LIBRARIES = (
    "torch._dynamo", "ipykernel.kernelapp", "ipykernel.debugger", "IPython.core.completer", "pandas.io.formats.style",
    "matplotlib.patheffects", "matplotlib.pyplot", "papermill.cli", "scipy.stats", "seaborn", "safetensors.torch",
    "tokenizers", "rich.live", "rich.table", "pyarrow.parquet", "huggingface_hub", "fastcore.all", "tabulate",
    "IPython.core.oinspect", "IPython.core.ultratb", "sqlite3", "tomllib")
MODULES = ("papermill", "ablation_nb.visit")  # such as may be run with `-m`
OWN_PROCESSES = ("nbs/13_kernels.ipynb", "nbs/13_parallel.ipynb")  # notebooks that look at processes as they are
READ_ON_IMPORT = ("MATPLOTLIBRC", "MPLBACKEND", "HF_HUB_OFFLINE")  # by libraries that a fork has already


def can_fork(argv, env):
    "Is this a command that a fork can be?"
    if any(env.get(k) != os.environ.get(k) for k in READ_ON_IMPORT): return False
    ours = argv[0] in ("python", sys.executable) and (argv[1] == "-c" or argv[1] == "-m" and argv[2] in MODULES)
    return argv[0] in ("ablation", "papermill", "nbdev-test") or ours


class Forked:
    "A command at work, with as much of the face of `subprocess.Popen` as tests need."
    def __init__(self, argv, cwd, env):
        self.args, self.returncode, self.said = argv, None, {}
        ends = [os.pipe() for _ in ("stdout", "stderr", "exit status")]
        job = dict(argv=argv, cwd=str(cwd), env=env)
        self.pid = SERVER.fork(job, [w for _, w in ends])
        for _, w in ends: os.close(w)
        *pipes, self.end = (r for r, _ in ends)
        self.readers = [threading.Thread(target=self.read, args=pipe, daemon=True) for pipe in enumerate(pipes)]
        for r in self.readers: r.start()

    def read(self, i, pipe):
        with open(pipe, encoding="utf-8") as f: self.said[i] = f.read()

    def wait(self, timeout=None):
        if self.returncode is not None: return self.returncode
        with selectors.DefaultSelector() as ended:
            ended.register(self.end, selectors.EVENT_READ)
            if not ended.select(timeout): raise subprocess.TimeoutExpired(self.args, timeout)
        self.returncode = int(os.read(self.end, 20))
        os.close(self.end)
        return self.returncode

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired): return self.wait(0)

    def communicate(self, timeout=None):
        "What it said on standard output and on standard error, when both are closed and it has ended."
        self.wait(timeout)
        for r in self.readers:
            r.join(timeout)
            if r.is_alive(): raise subprocess.TimeoutExpired(self.args, timeout)
        return self.said[0], self.said[1]

    def send_signal(self, signum):
        if self.poll() is None: os.kill(self.pid, signum)

    def terminate(self): self.send_signal(signal.SIGTERM)
    def kill(self): self.send_signal(signal.SIGKILL)


def done(argv, cwd, env, timeout):
    "As `subprocess.run`: the command when it has ended."
    process = Forked(argv, cwd, env)
    try: said = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(argv, process.returncode, *said)


class Server:
    "The process that forks, one for all processes of a test session; the first command of the session starts it."
    def __init__(self): self.socket = self.place = self.process = None

    def fork(self, job, pipes):
        "Ask for a fork that writes to these pipes: standard output, standard error, exit status. Its process id."
        if self.socket is None: self.connect()
        socket.send_fds(self.socket, [json.dumps(job).encode()], pipes)
        pid = self.socket.recv(20)
        if not pid: raise RuntimeError("The process that forks has ended; what it said last stands above.")
        return int(pid)

    def connect(self):
        folder = os.open(self.place, os.O_RDONLY)
        address = f"/proc/self/fd/{folder}/forks"  # an address of a socket may not be long
        with FileLock(self.place / "forks.lock"):
            if not (self.place / "forks").exists(): self.start(address)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(address)
        os.close(folder)

    def start(self, address):
        "Begin to listen, and leave the rest to a process that ends with the test session."
        session = os.pidfd_open(os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid())
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(address)
            listener.listen()
            fds = listener.fileno(), session
            quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # a pipe, as standard output of a fork is
            env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
            self.process = subprocess.Popen([sys.executable, __file__, *map(str, fds)], env=env, pass_fds=fds, **quiet)
        os.close(session)


SERVER = Server()


def next_job(listener, session):
    "In the process that forks, this ends with the session. In each fork it returns the job."
    waiting = selectors.DefaultSelector()  # for the end, for who asks, and for the end of each fork: its id and pipe
    for end in (listener, session): waiting.register(end, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj == session: return None
            if key.fileobj == listener: waiting.register(listener.accept()[0], selectors.EVENT_READ)
            elif key.data:
                waiting.unregister(key.fileobj)
                report_end(key.fileobj, *key.data)
            elif job := begun(key.fileobj, waiting): return job


def begun(asks, waiting):
    "Fork for who asks, or leave who has gone. In the fork, its job."
    try: message, pipes, *_ = socket.recv_fds(asks, 1 << 20, 3)
    except ConnectionError: message = b""   # a process of the tests that was killed
    if not message:
        waiting.unregister(asks)
        asks.close()
        return None
    pid = os.fork()
    if not pid:
        for key in waiting.get_map().values():
            if key.data: os.close(key.data[1])
            if isinstance(key.fileobj, int): os.close(key.fileobj)
            else: key.fileobj.close()
        waiting.close()
        return json.loads(message), pipes
    waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, pipes[2]))
    for p in pipes[:2]: os.close(p)
    with contextlib.suppress(ConnectionError): asks.send(str(pid).encode())
    return None


def report_end(pidfd, pid, pipe):
    "Write the exit status of a fork that has ended, as `subprocess` counts it."
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError): os.write(pipe, str(status).encode())
    for fd in (pidfd, pipe): os.close(fd)


def become(job, pipes):
    "In a fork: the environment, directory, pipes and signals of the command."
    for fd, pipe in zip((1, 2), pipes): os.dup2(pipe, fd)
    for p in pipes: os.close(p)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    own = set(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    theirs = [p for p in job["env"].get("PYTHONPATH", "").split(os.pathsep) if p]
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    script = os.path.dirname(shutil.which(job["argv"][0]))
    first = "" if job["argv"][1:2] == ["-c"] else os.getcwd() if job["argv"][1:2] == ["-m"] else script
    sys.path[:] = [first, *theirs, *(p for p in sys.path[1:] if p not in own)]


class Branch:
    "The nursery of kernels as a fork of its engine, with the face of `subprocess.Popen` that the engine needs."
    def __init__(self, nursery):
        (its_in, to_it), (from_it, its_out) = os.pipe(), os.pipe()
        sys.stdout.flush()
        self.returncode, self.pid = None, os.fork()
        if not self.pid:
            for fd, pipe in enumerate((its_in, its_out)): os.dup2(pipe, fd)
            for pipe in (its_in, to_it, from_it, its_out): os.close(pipe)
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            nursery()
        for pipe in (its_in, its_out): os.close(pipe)
        self.stdin, self.stdout = open(to_it, "w"), open(from_it)

    def wait(self, how=0):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            if pid: self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def poll(self): return self.wait(os.WNOHANG)

    def kill(self):
        if self.poll() is None: os.kill(self.pid, signal.SIGKILL)


def with_forked_kernels():
    "The first nursery of this process is a fork of it, and the kernels of papermill come from there, too."
    import papermill.cli

    from ablation_nb import kernels
    running, execute = kernels.Nursery.running, papermill.execute_notebook

    def forked(self):
        if self.process is None: self.process = Branch(kernels.nursery)
        return running(self)

    def execute_notebook(*args, **how):
        kernels.NURSERY.warm()
        return execute(*args, **{"kernel_manager_class": kernels.ForkedKernel, **how})
    kernels.Nursery.running = forked
    papermill.execute_notebook = papermill.cli.execute_notebook = execute_notebook


def nursery_when_asked():
    "In a fork of its own: a nursery from the first kernel on, if there is any."
    from ablation_nb import kernels
    select.select([0], [], [])
    asked = fcntl.ioctl(0, termios.FIONREAD, bytes(4))   # how much there is to read: nothing where the pipe is closed
    if any(asked): kernels.nursery()
    os._exit(0)


def with_forked_nursery():
    "The first nursery of this process is a fork of it as it is now."
    from ablation_nb.kernels import NURSERY
    NURSERY.process = Branch(nursery_when_asked)


def carry_out(argv):
    "The command, in this process; its exit status."
    name, *words = argv
    sys.argv = argv
    if name == "dask":
        from dask.__main__ import main
        return main()
    if name == "nbdev-test":
        if words[0] not in OWN_PROCESSES: with_forked_nursery()
        runpy.run_path(shutil.which(name), run_name="__main__")   # it reads `argv` only where it is the script
        return 0
    with_forked_kernels()
    if name == "ablation":
        from ablation_nb import command
        return command()
    if name == "papermill":
        from papermill.cli import papermill
        return papermill()
    how, what, *words = words
    sys.argv = [how, *words]
    if how == "-m": runpy.run_module(what, run_name="__main__", alter_sys=True)
    else: exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    return 0


def take_no_leave():
    "Of what torch does when a process ends, all that nobody sees: it unregisters its operators, and sums up compilers."
    from torch._dynamo.utils import dump_compile_times
    from torch.library import _del_library
    atexit.unregister(dump_compile_times)
    for last in weakref.finalize._registry:
        if last.peek()[1] is _del_library: last.atexit = False


def have_ready():
    "In the process that forks: what each fork would import and work out again."
    for library in LIBRARIES: import_module(library)
    import nbformat
    inspect.getmodule(compile("0", "no file", "eval"))   # it looks at the file of every module, and remembers them
    nbformat.validate(nbformat.v4.new_notebook())   # of the schema a validator is made, and kept
    take_no_leave()
    gc.collect()
    gc.freeze()   # forks need not look through what was imported before them


def end_as(job, pipes):
    "Be the command from beginning to end. Memory is not given back piece by piece, which would take a second."
    become(job, pipes)
    try: status = carry_out(job["argv"])
    except SystemExit as e: status = e.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # as the interpreter does: threads that are no daemons first, then what waits for the end
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr): stream.flush()
    os._exit(status or 0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal of the tests is theirs
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"   # else the debugger greets
    have_ready()
    listener, session = map(int, sys.argv[1:])
    job = next_job(socket.socket(fileno=listener), session)
    if job: end_as(*job)
    os._exit(0)
