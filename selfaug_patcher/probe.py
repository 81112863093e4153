"""What an import would find: run in the interpreter that is asked about, prints one JSON object.

Imports nothing but the standard library, and of that only modules that do not import the packages asked about. It is
handed over as text (``python -c``), and interpreters as old as Python 2.7 read it too, to say how old they are.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, disable-error-code=assignment

import json
import os
import sys


def record(distribution, paths):
    """What the list of installed files says of these: path to sha256, in hexadecimal."""
    import base64

    hashes = {}
    for line in (distribution.read_text("RECORD") or "").splitlines():
        fields = line.split(",")
        if fields[0] in paths and len(fields) > 1 and fields[1].startswith("sha256="):
            digest = fields[1][len("sha256=") :]
            hashes[fields[0]] = base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4)).hex()
    return hashes


def version(distribution):
    """Empty for a ``.dist-info`` without METADATA, as a cut short uninstall leaves it."""
    try:
        return distribution.version or ""
    except (KeyError, OSError, TypeError):  # what Python 3.14 and later make of it
        return ""


def editable(distribution):
    """Whether the installer says that the code lies in a checkout. A file that cannot be read says nothing: then only
    the place where the code lies counts.
    """
    try:
        return bool(json.loads(distribution.read_text("direct_url.json") or "{}")["dir_info"]["editable"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def distributions(name, paths):
    from importlib import metadata

    answers = []
    for distribution in metadata.distributions(name=name):
        folder = getattr(distribution, "_path", None)
        answers.append(
            {
                "version": version(distribution),
                "site": os.path.dirname(os.path.abspath(str(folder))) if folder is not None else "",
                "installer": (distribution.read_text("INSTALLER") or "").strip(),
                "record": record(distribution, paths),
                "editable": editable(distribution),
            }
        )
    return answers


def package(name, paths, entries):
    import importlib.util

    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    return {
        "origin": os.path.abspath(spec.origin) if spec is not None and spec.origin and spec.has_location else "",
        "loader": type(spec.loader).__name__ if spec is not None else "",
        "namespace": list(spec.submodule_search_locations or []) if spec is not None and spec.origin is None else [],
        "copies": [entry for entry in entries if os.path.isfile(os.path.join(entry, name, "__init__.py"))],
        "distributions": distributions(name, paths),
    }


def torch():
    """The version of torch; empty where there is none."""
    from importlib import metadata

    try:
        return version(metadata.distribution("torch"))
    except metadata.PackageNotFoundError:
        return ""


def answer(packages):
    """``packages`` maps the names asked about to paths of files in them."""
    answers = {"version": list(sys.version_info[:3])}
    if sys.version_info >= (3, 9):  # noqa: UP036
        import sysconfig

        entries = [os.path.abspath(entry) for entry in sys.path if entry]
        marker = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
        managed = sys.prefix == sys.base_prefix and os.path.isfile(marker)
        answers["path"] = entries
        answers["externally_managed"] = marker if managed else ""
        answers["conda"] = os.path.isdir(os.path.join(sys.prefix, "conda-meta"))
        answers["packages"] = {name: package(name, paths, entries) for name, paths in packages.items()}
        answers["torch"] = torch()
    return answers


if __name__ == "__main__":
    # "-c" puts the working directory first on the path; a training script has its own folder there instead.
    sys.path[:] = [entry for entry in sys.path if entry]
    print(json.dumps(answer(json.loads(sys.argv[1]))))
