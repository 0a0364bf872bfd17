"""Commands of the package as forks of one process that has imported what they need of other libraries.

An interpreter takes five seconds of a core to import torch, pandas and Jupyter, and most tests start several.
A fork has them at once. All else is as in a terminal: it is a process of its own, with its directory, environment,
signals and pipes, and it imports the package and arms.py anew, from where these say.
"""
import atexit
import contextlib
import gc
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import traceback
from importlib import import_module

LIBRARIES = (
    "torch._dynamo", "ipykernel.kernelapp", "IPython.core.completer", "pandas.io.formats.style",
    "matplotlib.patheffects", "matplotlib.pyplot", "papermill.cli", "scipy.stats", "seaborn", "safetensors.torch",
    "tokenizers", "rich.live", "pyarrow.parquet", "huggingface_hub", "fastcore.all")
READ_ON_IMPORT = ("MATPLOTLIBRC", "MPLBACKEND", "HF_HUB_OFFLINE")  # by libraries that a fork has already


def can_fork(argv, env):
    "Is this a command that a fork can be?"
    if any(env.get(k) != os.environ.get(k) for k in READ_ON_IMPORT): return False
    is_code = argv[0] in ("python", sys.executable) and argv[1] == "-c"
    return argv[0] in ("ablation", "papermill", "nbdev-test") or is_code


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
    "The process that forks; started at the first command."
    def __init__(self): self.process = None

    def fork(self, job, pipes):
        "Ask for a fork that writes to these pipes: standard output, standard error, exit status. Its process id."
        if self.process is None: self.start()
        socket.send_fds(self.socket, [json.dumps(job).encode()], pipes)
        return int(self.socket.recv(20))

    def start(self):
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, __file__, str(theirs.fileno())]
        quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # a pipe, as standard output of a fork is
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self.process = subprocess.Popen(argv, env=env, pass_fds=[theirs.fileno()], **quiet)
        theirs.close()

    def stop(self):
        if self.process is None: return
        self.socket.close()
        self.process.communicate()


SERVER = Server()


def next_job(ours):
    "In the process that forks, this ends with the socket. In each fork it returns the job."
    running = selectors.DefaultSelector()  # the socket, and a descriptor of each fork
    running.register(ours, selectors.EVENT_READ)
    while True:
        for key, _ in running.select():
            if key.fileobj is not ours:
                running.unregister(key.fileobj)
                report_end(key.fileobj, *key.data)
                continue
            message, pipes, *_ = socket.recv_fds(ours, 1 << 20, 3)
            if not message: return None
            pid = os.fork()
            if not pid:
                others = [fd for k in running.get_map().values() if k.data for fd in (k.fd, k.data[1])]
                running.close()
                ours.close()
                for fd in others: os.close(fd)
                return json.loads(message), pipes
            running.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, pipes[2]))
            for p in pipes[:2]: os.close(p)
            ours.send(str(pid).encode())


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


def carry_out(argv):
    "The command, in this process; its exit status."
    name, *words = argv
    sys.argv = argv
    if name == "dask":
        from dask.__main__ import main
        return main()
    if name == "nbdev-test":
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
    for library in LIBRARIES: import_module(library)
    gc.collect()
    gc.freeze()   # forks need not look through what was imported before them
    job = next_job(socket.socket(fileno=int(sys.argv[1])))
    if job: end_as(*job)
    os._exit(0)
