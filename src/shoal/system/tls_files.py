"""The files of a cluster's TLS: its own authority, and the certificate that all its nodes share.

Purpose: make them (`shoal certificates`), find them, and refuse a key that others may read.

Design: a folder of mode 0700 with ca.pem (the authority), node.pem and node.key. A node trusts whoever has a certificate of this authority and no
other, whatever his address is: the authority signs for one cluster only, so belonging to it is all that a certificate says. The authority's own key
is thrown away: to add a machine copy the folder, as the token is copied; to change it make a new one. The files are made by the openssl command,
which is on every Linux; nothing else needs it.

What it does not do: speak TLS (`wire.tls`); prove the token, which is asked for inside of TLS as it is without.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass

VALID_DAYS = 3650
OPENSSL_TIMEOUT_S = 60.0
CA_NAME, CERTIFICATE_NAME, KEY_NAME = "ca.pem", "node.pem", "node.key"


@dataclass(slots=True)
class TlsFiles:
    """Paths of the three."""

    ca: str
    certificate: str
    key: str


def tls_folder() -> str:
    """Where they are: SHOAL_TLS_FOLDER, or ~/.shoal/tls."""
    return os.environ.get("SHOAL_TLS_FOLDER") or os.path.join(os.path.expanduser("~"), ".shoal", "tls")


def _files_in(folder: str) -> TlsFiles:
    return TlsFiles(*(os.path.join(folder, name) for name in (CA_NAME, CERTIFICATE_NAME, KEY_NAME)))


def find_tls_files(folder: str) -> TlsFiles:
    """The files in `folder`.

    Raises:
        FileNotFoundError: one is missing; says how to get it.
        PermissionError: others may read the key.
    """
    files = _files_in(folder)
    for path in (files.ca, files.certificate, files.key):
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"there is no {path}, which TLS needs. `shoal certificates` makes the files, once for the whole cluster: copy the folder "
                f"{folder} from where that was done (scp -rp), or name it by SHOAL_TLS_FOLDER"
            )
    status = os.stat(files.key)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PermissionError(
            f"the key {files.key} belongs to user {status.st_uid} with mode {stat.S_IMODE(status.st_mode):o}: others may know it. Make it yours "
            f"alone: chmod 600 {files.key}, or make new ones with `shoal certificates`"
        )
    return files


def make_tls_files(folder: str) -> TlsFiles:
    """Make them in `folder`, which must not have any yet.

    Raises:
        FileExistsError: there are some.
        RuntimeError: the openssl command is missing, or fails.
    """
    files = _files_in(folder)
    there = [path for path in (files.ca, files.certificate, files.key) if os.path.exists(path)]
    if there:
        raise FileExistsError(
            f"{', '.join(there)} exists: remove the folder {folder} if its cluster is to have new ones"
        )
    if shutil.which("openssl") is None:
        raise RuntimeError("the openssl command makes certificates, and it is not installed (apt-get install openssl)")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as workshop:  # 0700; the authority's key goes with it
        new = {name: os.path.join(workshop, name) for name in (CA_NAME, CERTIFICATE_NAME, KEY_NAME)}
        ca_key, request = os.path.join(workshop, "ca.key"), os.path.join(workshop, "request")
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        days = ("-days", str(VALID_DAYS))
        _openssl("req", "-x509", *curve, *days, "-subj", "/CN=Shoal cluster", "-keyout", ca_key, "-out", new[CA_NAME])
        _openssl("req", *curve, "-subj", "/CN=Shoal node", "-keyout", new[KEY_NAME], "-out", request)
        signing = ("-CA", new[CA_NAME], "-CAkey", ca_key, "-CAcreateserial", *days)
        _openssl("x509", "-req", "-in", request, *signing, "-out", new[CERTIFICATE_NAME])
        for name, path in new.items():
            os.chmod(path, 0o600)
            os.rename(path, os.path.join(folder, name))
    return files


def _openssl(*arguments: str) -> None:
    done = subprocess.run(
        ["openssl", *arguments], capture_output=True, text=True, timeout=OPENSSL_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]} failed: {done.stderr.strip()[-500:]}")
