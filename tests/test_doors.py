"What comes in from outside: through ports, through folders that others have sent, through settings of the machine."
import configparser
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT, as_in_a_terminal, copied, refused, succeeded
from engines import project, wait_for, write
from markdown_it.renderer import RendererHTML
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser

pytest.importorskip("distributed")
ONE_RUN = 'scale = "smoke"\narms = ["nope"]\nseeds = [0]\n[overrides]\nn_steps = 10\n'


def shell_of_scale_out():
    "The shell lines of the page on clusters, without what is for a screen only."
    cells = json.loads((ROOT / "nbs" / "scale_out.ipynb").read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.findall(r"```sh\n(.+?)```", text, re.S)


def documented(word, *marks):
    "The first command of the page that starts so and holds these marks."
    lines = [line for block in shell_of_scale_out() for line in block.splitlines()]
    found = [re.search(rf"{word}[^>]*", line) for line in lines]
    return next(m[0].strip() for m in found if m and all(mark in m[0] for mark in marks))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listening(process):
    "IP addresses on which a process and its children wait for connections, one a socket."
    ours = [process, *process.children(recursive=True)]
    return [c.laddr.ip for p in ours for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]


@pytest.fixture
def started(tmp_path, env):
    "Starts a command as it would be typed: `started('dask scheduler ...')` -> its process and what it logs."
    processes = []

    def start(command, **more):
        log = tmp_path / f"{len(processes)}.log"
        own = dict(cwd=tmp_path, env={**env, **more}, stdout=log.open("w"), stderr=subprocess.STDOUT)
        processes.append(subprocess.Popen(shlex.split(command), preexec_fn=as_in_a_terminal, **own))
        return psutil.Process(processes[-1].pid), log
    yield start
    for p in reversed(processes):
        p.terminate()
        p.wait(timeout=20)


def cluster(started, scheduler, worker, port, **env):
    "A scheduler and a worker of it, each up and with its addresses."
    first, log = started(scheduler, **env)
    wait_for(lambda: f":{port}" in log.read_text())
    second, log = started(worker, **env)
    wait_for(lambda: "Registered to" in log.read_text())
    return listening(first), listening(second)


def at(command, port, host="127.0.0.1"):
    "A documented command with a port that is free here, and with an address that is this machine's."
    command = command.replace("10.0.0.1", host).replace("8786", str(port)).replace("127.0.0.1:8787", "127.0.0.1:0")
    return f"{command} --port {port}" if "scheduler --host" in command else command


def test_a_cluster_as_documented_is_open_to_this_machine_alone(started):
    port = free_port()
    scheduler = at(documented("dask scheduler", "--host 127.0.0.1"), port)
    worker = at(documented("dask worker", "tcp://127.0.0.1"), port)
    of_scheduler, of_worker = cluster(started, scheduler, worker, port)
    assert len(of_scheduler) == 2, "its port and its dashboard"
    assert set(of_scheduler) == {"127.0.0.1"}
    assert len(of_worker) == 3, "its nanny, its port and its dashboard"
    assert set(of_worker) == {"127.0.0.1"}


def test_a_cluster_as_the_error_messages_say_is_open_to_this_machine_alone(started, sh, tmp_path):
    port = free_port()
    root = project(tmp_path / "project")
    run = "ablation", "run", write(root, "one", ONE_RUN), "--scheduler", f"tcp://127.0.0.1:{port}"

    def advised():
        words = refused(sh(*run, cwd=root), "certificates", status=2).stderr.split()
        return re.search(r"`(dask .+?)`", " ".join(words))[1]
    scheduler, log = started(f"{advised()} --port {port}")
    wait_for(lambda: f":{port}" in log.read_text())
    assert set(listening(scheduler)) == {"127.0.0.1"}
    worker, log = started(advised())
    wait_for(lambda: "Registered to" in log.read_text())
    assert set(listening(worker)) == {"127.0.0.1"}


def test_a_cluster_of_several_machines_lets_in_who_has_the_key(started, sh, env, tmp_path):
    "Every port that is open to others speaks TLS; a run is carried out, and without the key there is one sentence."
    keys = next(block for block in shell_of_scale_out() if "openssl" in block).replace("cd /shared/ablation\n", "")
    succeeded(sh("sh", "-ec", keys.replace("4096", "2048"), cwd=tmp_path))
    assert (tmp_path / "cluster.key").stat().st_mode & 0o077 == 0
    told = succeeded(sh("sh", "-c", ". ./cluster.env && env", cwd=tmp_path)).stdout.splitlines()
    tls = dict(line.split("=", 1) for line in told if line.startswith("DASK_"))
    port = free_port()
    scheduler, worker = (at(documented(f"dask {who}", "tls://"), port) for who in ("scheduler", "worker"))
    of_scheduler, of_worker = cluster(started, scheduler, worker, port, **tls)
    assert set(of_scheduler) == {"127.0.0.1"}
    assert sum(ip != "127.0.0.1" for ip in of_worker) <= 2, "its port, for each kind of address; not its dashboard"
    address = f"tls://127.0.0.1:{port}"
    root = project(tmp_path / "project")
    run = "ablation", "run", write(root, "one", ONE_RUN), "--scheduler"
    refused(sh(*run, address, cwd=root), "needs certificates", "__CLIENT__KEY", status=2)
    plain = refused(sh(*run, address.replace("tls", "tcp"), cwd=root), "No dask scheduler answers", status=2)
    assert "Traceback" not in plain.stderr
    assert "1 of 1 usable" in succeeded(sh(*run, address, cwd=root, **tls)).stdout


SCRIPT = "<script>plant()</script>"
PLANT = "\n\n".join((
    f"{SCRIPT}<img src=x onerror=plant()> [x](javascript:plant()) ![x](https://plant.example/x.png) | `",
    r"$\href{javascript:plant()}{x}$ {download}`/etc/passwd` </td></table>" + SCRIPT,
    f"```{{raw}} html\n{SCRIPT}\n```",
    "```{math}\n\\href{javascript:plant()}{x}\n```",
    "- [plant]: https://plant.example\n\n[plant]"))
WHICH_RUN = ("arm", "status", "norm", "placement", "position", "ffn", "package_hash")  # with others it is no run


def planted(value, *kept):
    "The same with the plant in every text, those of some fields left out."
    if isinstance(value, dict): return {k: v if k in kept else planted(v, *kept) for k, v in value.items()}
    if isinstance(value, list): return [planted(v, *kept) for v in value]
    return value + PLANT if isinstance(value, str) else value


def plant_in_run(folder, *kept):
    "Plant it in every file of a run, which stays one run by its identity, and in every output of its notebook."
    from ablation_nb.provenance import identity_of
    files = {name: planted(json.loads((folder / name).read_text()), *kept) for name in RUN_JSON}
    config, env, result = files.values()
    identity = identity_of(config, env["data_hash"], env["tokenizer_hash"])
    env["identity"] = result["identity"] = identity
    result["stories"] = {prompt + PLANT: text for prompt, text in result["stories"].items()}
    for name, content in files.items(): (folder / name).write_text(json.dumps(content))
    rows = [json.loads(line) | {PLANT: 1.0} for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))   # numbers, under any name
    notebook = json.loads((folder / "run.ipynb").read_text())
    for cell in notebook["cells"]:
        cell["metadata"]["mystnb"] = {"execution_mode": "force"}
        if cell["cell_type"] == "markdown": cell["source"] = "".join(cell["source"]) + PLANT
        else:
            draws = "run.metrics" in "".join(cell["source"])
            cell |= dict(source=EXECUTED + "".join(cell["source"]), outputs=[] if draws else HOSTILE_OUTPUTS)
    notebook["metadata"]["mystnb"] = {"execution_mode": "force"}
    (folder / "run.ipynb").write_text(json.dumps(notebook))


RUN_JSON = ("config.json", "env.json", "result.json")
KINDS = ("text/html", "text/markdown", "text/plain", "text/latex", "image/svg+xml", "application/javascript")
HOSTILE_OUTPUTS = [
    *(dict(output_type="display_data", metadata={}, data={kind: PLANT}) for kind in KINDS),
    dict(output_type="stream", name="stdout", text=PLANT),
    dict(output_type="error", ename="Error" + PLANT, evalue=PLANT, traceback=[PLANT])]
EXECUTED = "open('executed', 'w').close()\n"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    "A project whose one study has the plant in every field: usable runs in what they say, one in what it is, too."
    root = copied(tmp_path_factory.mktemp("hostile"), "outputs/laptop-tinystories", "studies", "ablation_nb")
    study = root / "outputs" / "laptop-tinystories"
    with zipfile.ZipFile(study / "runs.zip") as archive: archive.extractall(study)
    (study / "runs.zip").unlink()
    for result in study.rglob("result.json"): plant_in_run(result.parent, *WHICH_RUN)
    plant_in_run(study / "silu" / "0.01-s2")
    arms = ("baseline", "nope", "silu")
    curve = [dict(lr=.01, losses={}, mean=3.0, diverged=0)]
    tuning = {"": {arm: dict(lr=.01, edge="low", curve=curve) for arm in arms}}
    speed = dict(device="CPU", torch="2", precision="fp32", threads=1, steps=5, tokens=2048)
    speed["seconds"] = {"baseline": [1, 2]}
    plan = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps(planted(plan, "arms")))
    (study / "tuning.json").write_text(json.dumps(planted(tuning)))
    (study / "speed.json").write_text(json.dumps(planted(speed)))
    return root


def alive(html):
    "What a browser would act on of what was planted: elements, attributes and addresses, and math that holds it."
    soup = BeautifulSoup(html, "html.parser")
    acts = [tag for tag in soup("script") if "plant" in tag.get_text()]
    acts += [tag for tag in soup(True) if any(name.startswith("on") for name in tag.attrs)]
    leads = [(tag, tag.get(name, "#")) for tag in soup(True) for name in ("href", "src")]
    acts += [tag for tag, to in leads if re.search("plant|passwd", to) and not to.startswith("#")]
    acts += [tag for tag in soup.select(".math") if "plant" in tag.get_text()]
    return acts


def as_html(page):
    "A page as the site's parser reads it."
    return create_md_parser(MdParserConfig(enable_extensions=["dollarmath", "amsmath"]), RendererHTML).render(page)


def test_words_of_a_run_folder_are_no_more_than_words_on_the_report(hostile):
    from ablation_nb.report import write_report
    page = write_report(hostile / "outputs" / "laptop-tinystories").read_text()
    assert page.count("plant()") > 50, "it stands there, as words"
    for place in ("- **Device**:", "Times are measured apart", "- not used: `silu/0.01-s2`"):
        line = next(line for line in page.splitlines() if place in line)
        assert "&lt;script>plant()" in line, place
    assert alive(as_html(page)) == []


def test_words_of_a_run_folder_are_no_more_than_words_on_the_site(hostile, sh):
    "A report and its executed notebooks, as the site renders them; nothing that the folder brings is executed."
    from ablation_nb.report import write_report
    study = hostile / "outputs" / "laptop-tinystories"
    write_report(study)
    code = ("import sys; sys.path.insert(0, 'nbs/_sphinx')\n"
            "import pages\nout = pages.Path('pages')\n"
            "pages.study_page(out, pages.ROOT / 'outputs/laptop-tinystories/report.md')\n"
            "pages.notebook_page(out, pages.ROOT / 'nbs' / 'train.ipynb')\n"
            "index = pages.in_short(pages.ROOT / 'outputs/laptop-tinystories/report.md')\n"
            "toc = pages.toctree('outputs/laptop-tinystories/report', 'nbs/train')\n"
            "pages.write(out / 'index.md', f'# Studies\\n\\n{index}\\n{toc}')\n")
    succeeded(sh("python", "-c", code, cwd=hostile, PYTHONPATH=str(hostile)))
    succeeded(sh("python", "-m", "sphinx", "-q", "-E", "-c", "nbs/_sphinx", "pages", "site", cwd=hostile))
    assert not list(hostile.rglob("executed"))
    rendered = sorted(p for p in (hostile / "site").rglob("*.html") if "_static" not in p.parts)
    assert len([p for p in rendered if p.name == "run.html"]) == 6
    for p in rendered: assert alive(p.read_text()) == [], p
    words = "".join(p.read_text() for p in rendered)
    assert words.count("plant()") > 100, "it stands there, as words"


def test_a_matplotlibrc_of_this_machine_changes_no_run_and_no_figure(sh, tmp_path):
    "One that needs LaTeX, which is not there, and another look: runs end, and the report has the same pictures."
    root = project(tmp_path / "project")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nlines.linewidth: 9\nsavefig.bbox: tight\n")
    study, rc = write(root, "one", ONE_RUN), {"MATPLOTLIBRC": str(tmp_path)}
    succeeded(sh("ablation", "run", study, cwd=root, **rc))
    (run,) = root.glob("outputs/*/nope/*/run.ipynb")
    assert '"image/png"' in run.read_text()
    pictures = []
    for own in (rc, {}):
        succeeded(sh("ablation", "report", study, cwd=root, **own))
        files = [*root.glob("outputs/*/*.[ps][nv]g")]
        pictures.append({f.name: f.read_bytes() for f in files})
        for f in (*files, *root.glob("outputs/*/report.md")): f.unlink()   # or the report stands, and is not written
    assert pictures[0]
    assert pictures[0] == pictures[1]


def test_ctrl_c_while_the_command_is_imported_is_one_line(env):
    "As the installed script starts it, before, amid and after the import of torch; a plan imports none of it."
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    module, function = settings["DEFAULT"]["console_scripts"].removeprefix("ablation=").split(":")
    code = f"import sys; from {module} import {function}; sys.exit({function}())"
    for command, library in (("plan", "numpy"), ("run", "numpy"), ("run", "libtorch"), ("run", "pandas")):
        argv = [sys.executable, "-c", code, command, "studies/depth.toml"]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process = subprocess.Popen(argv, cwd=ROOT, env=env, preexec_fn=as_in_a_terminal, **pipes)
        wait_for(lambda: library in Path(f"/proc/{process.pid}/maps").read_text())
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, library
        assert said == "ablation: interrupted.\n", library
