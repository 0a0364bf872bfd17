"Which parts of a modern Transformer matter, by how much, and how sure one can be."
import os

# Read when torch loads, so it is set before any module of ours can load it: idle threads that spin made steps up to
# 20 times slower on two shared cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> str:
    "`__version__`, from the metadata of the installed package, whose one place is settings.ini."
    if name != "__version__": raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version
    return version(__name__)


def command() -> int:
    "The command `ablation`: its exit status. Ctrl-C is one line, also while libraries are imported."
    import signal
    import sys

    def leave(*_: object) -> None:
        os.write(2, b"ablation: interrupted.\n")
        os._exit(130)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler: signal.signal(signal.SIGINT, leave)
    # A second for grammars of web addresses, which no notebook asks for.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    from ablation_nb.cli import main
    return main()
