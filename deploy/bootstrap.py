"""Make `.venv` from a lock with hashes, with nothing but Python's own library.

    python deploy/bootstrap.py [run | dev | openapi]

`run` is what `make demo` needs, `dev` adds what `make test` needs, `openapi` what `make
test-openapi` needs. A second call costs nothing: a
stamp holds the hash of lock, pyproject, Python and place. Parses on Python 3.6, so that its
message about the version can be read there.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PROFILES = ["run", "dev", "openapi"]
WINDOWS = os.name == "nt"
BIN = os.path.join(VENV, "Scripts" if WINDOWS else "bin")
PYTHON = os.path.join(BIN, "python.exe" if WINDOWS else "python")
SCRIPT = """#!{python}
import sys

from api.cli.main import main

sys.exit(main())
"""


def say(text):
    """Print one line of progress on stderr."""
    sys.stderr.write("bootstrap: " + text + "\n")
    sys.stderr.flush()


def read(path):
    """Return a file's text, or '' when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def write(path, text, mode=0o644):
    """Replace a file as a whole."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path + ".new", mode)
    os.replace(path + ".new", path)


def lock_of(profile):
    """Return the path of a profile's lock."""
    return os.path.join(ROOT, "deploy", "requirements-" + profile + ".lock")


def stamp(profile):
    """Return what must be unchanged for the environment to be still good."""
    parts = [read(lock_of(profile)), read(os.path.join(ROOT, "pyproject.toml")), read(__file__)]
    parts += [sys.version, os.path.realpath(sys.executable), ROOT]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def is_current(profile):
    """Tell whether `.venv` already holds this profile; each holds those before it too."""
    if not os.path.exists(PYTHON):
        return False
    wanted = PROFILES[PROFILES.index(profile) :]
    return any(read(os.path.join(VENV, "stamp-" + name)) == stamp(name) for name in wanted)


def call(*command):
    """Run a command; return whether it ended well. Its words are shown only when it did not."""
    with tempfile.TemporaryFile() as log:
        try:
            code = subprocess.call(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        except OSError as error:
            say(str(error))
            return False
        if code:
            log.seek(0)
            sys.stderr.write(log.read().decode("utf-8", "replace")[-4000:])
    return code == 0


def has(python, module):
    """Tell whether an interpreter has a module."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.call([python, "-c", "import " + module], **quiet) == 0


def with_uv(lock):
    """Install with uv, the fastest way."""
    uv = shutil.which("uv")
    if uv is None:
        return False
    if not os.path.exists(PYTHON) and not call(uv, "venv", "--python", sys.executable, VENV):
        return False
    return call(uv, "pip", "install", "--python", PYTHON, "--require-hashes", "-r", lock)


def make_venv():
    """Make `.venv` with pip in it, or return the pip outside that can install into it, or None."""
    if os.path.exists(PYTHON) and has(PYTHON, "pip"):
        return [PYTHON, "-m", "pip"]
    shutil.rmtree(VENV, ignore_errors=True)
    has_venv = has(sys.executable, "venv")
    if has_venv and has(sys.executable, "ensurepip") and call(sys.executable, "-m", "venv", VENV):
        return [PYTHON, "-m", "pip"]
    if has(sys.executable, "virtualenv") and call(sys.executable, "-m", "virtualenv", VENV):
        return [PYTHON, "-m", "pip"]
    bare = has_venv and call(sys.executable, "-m", "venv", "--clear", "--without-pip", VENV)
    if bare and has(sys.executable, "pip"):
        return [sys.executable, "-m", "pip", "--python", PYTHON]
    return None


def with_pip(lock):
    """Install with pip, wherever there is one."""
    pip = make_venv()
    if pip is None:
        version = "{}.{}".format(*sys.version_info[:2])
        say("no way to make a virtual environment. On Debian or Ubuntu this helps:")
        say("    sudo apt install python" + version + "-venv")
        return False
    options = ["--require-hashes", "--no-compile", "--disable-pip-version-check", "-q"]
    return call(*(pip + ["install"] + options + ["-r", lock]))


def link_project():
    """Put the checkout itself on the environment's path, as an editable install does."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = subprocess.check_output([PYTHON, "-c", code]).decode().strip()
    version = re.search(r'^version = "(.+)"', read(os.path.join(ROOT, "pyproject.toml")), re.M)
    number = version.group(1) if version else "0"
    info = os.path.join(site, "drumbeat-" + number + ".dist-info")
    for name in os.listdir(site):
        if name.startswith("drumbeat-") and name.endswith(".dist-info"):
            shutil.rmtree(os.path.join(site, name))
    write(os.path.join(site, "drumbeat.pth"), ROOT + "\n")
    write(
        os.path.join(info, "METADATA"),
        "Metadata-Version: 2.1\nName: drumbeat\nVersion: " + number + "\n",
    )
    write(os.path.join(info, "INSTALLER"), "deploy/bootstrap.py\n")
    write(
        os.path.join(info, "entry_points.txt"),
        "[console_scripts]\ndrumbeat = api.cli.main:main\n",
    )
    write(os.path.join(BIN, "drumbeat"), SCRIPT.format(python=PYTHON), 0o755)


def main():
    """Make the environment; return the exit code."""
    if sys.version_info < (3, 11):
        say("Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ".")
        say("Install one (python.org, brew, apt, uv python install 3.12) and try again.")
        return 2
    profile = sys.argv[1] if len(sys.argv) > 1 else "run"
    if profile not in PROFILES:
        say("usage: bootstrap.py [" + " | ".join(PROFILES) + "]")
        return 2
    if is_current(profile):
        return 0
    say("setting up .venv (" + profile + "), once")
    if not (with_uv(lock_of(profile)) or with_pip(lock_of(profile))):
        say("could not install " + os.path.relpath(lock_of(profile), ROOT) + "; see above.")
        say("Offline: pip download -r that file -d wheels, then PIP_FIND_LINKS=wheels.")
        return 3
    link_project()
    write(os.path.join(VENV, "stamp-" + profile), stamp(profile))
    return 0


if __name__ == "__main__":
    sys.exit(main())
