"""Addresses for display: without user, password, token or key, wherever in the address these occur."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import quote, unquote

BLANK = "***"
"""Replaces a hidden part."""
LONGEST_ADDRESS = 2048
"""Maximum length in characters; of a longer address, only the scheme is shown."""
LONGEST_TEXT = 65_536
"""Maximum length of a message in characters; the middle of a longer one is cut out, such as of an error that quotes a
damaged list.
"""
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,31}://")
IN_TEXT = re.compile(
    r"(?i)(?:[a-z][a-z0-9+.-]{1,31}:/|(?:https?|rtsps?|rtmp\w*|srt|udp|rtp|tcp|ftps?|sftp|mms\w?|wss?|mqtts?):)/[^\s\"<>]*"
)
"""An address within a message, also with a single slash, as ``pathlib`` writes it."""
AFTER_TEXT = ":,.;)]'"
"""Characters that often follow an address in a message, and rarely end one."""

FILE_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .avi .divx .mkv .webm .mpg .mpeg .mpe .vob .wmv .asf .mxf .ivf .3gp .ogv .h264 .h265 .hevc .y4m "
    ".gif".split()
)
"""A path with one of these suffixes ends with the name of a file."""

# -- the host ----------------------------------------------------------------------------------------------------------

HostKind = Literal["certain", "dotted", "label", "none"]
PORT = re.compile(r":(\d{1,5})$")
CERTAIN_HOST = re.compile(r"(?i)\[[0-9a-f:.]+(?:%\w+)?\]|\d{1,3}(?:\.\d{1,3}){3}|localhost")
DOTTED_HOST = re.compile(r"(?i)(?:[\w-]+\.)+(?:[^\W\d_]{2,}|xn--[\w-]+)\.?")
LABEL_HOST = re.compile(r"[\w-]+|\*\*\*|")
QUERY_VALUE = re.compile(r"\?(?:.*[&;])?[\w.%\[\]-]+=[^&;]*$", re.DOTALL)


def _host_kind(host: str) -> HostKind:
    """Return how certain it is that a text is a host, with or without a port: user and password look the same."""
    port = PORT.search(host)
    name = host[: port.start()] if port else host
    if port and int(port[1]) > 65535:
        return "none"
    if CERTAIN_HOST.fullmatch(name):
        return "certain"
    if DOTTED_HOST.fullmatch(name):
        return "dotted"
    return "label" if LABEL_HOST.fullmatch(name) else "none"


def _authority(rest: str) -> str:
    return re.split(r"[/?#]", rest, maxsplit=1)[0]


def _host_start(rest: str) -> int:
    """Return where the host begins in the text after ``://``: after the ``@`` of user and password, if there is one.

    A password may hold any character, and so may a path or a query. In doubt, the text before the last ``@`` is
    treated as a password.
    """
    starts = [0, *(match.end() for match in re.finditer("@", rest))]
    return next((start for start in starts[:-1] if _is_host(rest, start)), starts[-1])


def _is_host(rest: str, start: int) -> bool:
    """Return whether the host begins here, although an ``@`` follows."""
    host = _authority(rest[start:])
    if "@" in host:
        return False
    kind, tail = _host_kind(host), rest[start + len(host) :]
    if kind in ("certain", "none"):
        return kind == "certain"
    in_query = all(QUERY_VALUE.search(tail[: match.start()]) for match in re.finditer("@", tail))
    if start > 0 or PORT.search(host):  # otherwise user:password, or the end of a password
        return kind == "dotted" and in_query
    last = _authority(tail.rpartition("@")[2])
    is_last_host = _host_kind(last) in ("certain", "dotted") or PORT.search(last) is not None
    return kind == "dotted" or in_query or not is_last_host


def _shown_host(host: str) -> str:
    """Return a host; of anything else, as when the ``@`` was forgotten, return at most a name before the colon."""
    if _host_kind(host) != "none":
        return host
    name = host.partition(":")[0]
    return f"{name}:{BLANK}" if _host_kind(name) in ("certain", "dotted") else BLANK


# -- keys and values ---------------------------------------------------------------------------------------------------

SECRET_WORDS = (
    "pass", "pwd", "psw", "passwd", "token", "secret", "sign", "credential", "auth", "apikey", "api_key", "jwt", "sess",
    "login", "user", "usr", "nonce", "hmac", "hash", "digest", "md5", "bearer", "cookie", "ticket", "hdnea", "hdnts",
    "hdntl", "policy", "streamid", "keypairid", "key-pair-id", "accesskey", "license",
)  # fmt: skip
"""The value of a key that contains one of these is hidden."""
SECRET_KEYS = frozenset("u p k un pw psd pas pin otp code uid sid sig key keyid acc account".split())
"""The value of a key is also hidden if the key, or its last part (``stream_key``), is one of these."""
SECRET_ENDS = ("key", "sid", "sig", "pw")
PATH_KEYS = "channel|channels|chn|ch|stream|streamtype|subtype|track|profile|resolution|unicast|proto|width|height|fps"
"""Keys within a path that end the preceding value, as in ``user=a_password=b_channel=1_stream=0.sdp``."""
PATH_WORDS = frozenset("pass password passwd pwd psw token secret apikey api_key api-key jwt".split())
"""If a part of a path is one of these, the next part is hidden."""
LOGINS = "admin|administrator|root|user|username|service|operator|viewer|view|guest|default|supervisor|onvif|login"

EQUALS = r"(?:=|%3D)"
NAME = r"[^\W\d_][\w.\[\]-]{0,60}?"
KEYED = re.compile(rf"(?i)(^|[/_,;&?#|.!:@()~+$' -]|%(?:2[0136CF]|3[BF]|40|5F|7C))({NAME}){EQUALS}")
QUERY_OPENS = frozenset(("?", "&", ";", "#", "|", "%26", "%3b", "%3f", "%23", "%7c"))
QUERY_ENDS = re.compile(rf"(?i)(?:[&;#]|%26|%3B|%23)(?={NAME}{EQUALS})")
INNER_USER = re.compile(r"(?i)(%3A%2F%2F)(?:(?!%3A%2F%2F)[^&;#])*%40")
"""User and password of a percent-encoded address within a query."""


def _is_secret_key(key: str) -> bool:
    key = key.lower()
    last = re.split(r"[_.-]", key)[-1]
    return any(word in key for word in SECRET_WORDS) or last in SECRET_KEYS or last.endswith(SECRET_ENDS)


PATH_ENDS = re.compile(
    rf"(?i)(?:[_,;&?#|/.-]|%26|%3B|%3F)(?=(?:{PATH_KEYS}|(?:\w*[_-])?(?:{'|'.join(SECRET_WORDS)})\w*){EQUALS})"
)


def _without_values(tail: str) -> str:
    """Hide the values of secret keys. A value ends where the next key begins, because it may hold any character."""
    shown, at = "", 0
    while (found := KEYED.search(tail, at)) is not None:
        shown += tail[at : found.end()]
        at = found.end()
        if _is_secret_key(found[2]):
            ends = QUERY_ENDS if found[1].lower() in QUERY_OPENS else PATH_ENDS
            end = ends.search(tail, at)
            upto = len(tail) if end is None else end.start()
            shown += BLANK if upto > at else ""
            at = upto
    return shown + tail[at:]


# -- tokens ------------------------------------------------------------------------------------------------------------

SHORTEST_TOKEN = 16
SHORTEST_STREAM_KEY = 8
"""The same for the last part of an RTMP address, where publishers' keys are."""
SHORTEST_TANGLE = 8
JWT = re.compile(r"eyJ[\w-]{6,}\.[\w-]+")
BOT = re.compile(rf"(?i)bot\d+:.+|(?:{LOGINS}):.+")
GROUPS = re.compile(r"(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[a-z0-9]{4}(-[a-z0-9]{4}){3,}")
"""UUIDs, and keys in groups of four."""
TECHNICAL = re.compile(r"(?i)\d{8}T\d{4,9}Z?|h\.?26[45]|\d{3,4}[pi]\d{0,3}|\d+fps|mp[34]|\d+x\d+")
"""Times of day, codecs and sizes, which mix letters and numbers."""
RUNS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^A-Za-z\d]+")
SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}$")
BETWEEN = re.compile(r"(?i)([/?&;#=|,]|%2F|%3D|%26|%3F|%3B)")


def _is_word(letters: str) -> bool:
    """Return whether letters can be pronounced; a dictionary would be large, and limited to one language."""
    word = letters.lower()
    vowels = len(re.findall("[aeiouy]", word)) / len(word)
    min_vowels = 0.26 if len(word) >= 12 else 0.15
    return len(word) >= 3 and not re.search("[^aeiouy]{5}", word) and min_vowels <= vowels <= 0.8


def _tangle(piece: str) -> str:
    """Return a piece of a name if it looks randomly generated; return an empty text for words and numbers."""
    piece = TECHNICAL.sub("", piece)
    runs = RUNS.findall(piece)
    letters = [run for run in runs if run[0].isalpha()]
    if len(letters) <= 1 and (not letters or len(letters[0]) <= 4 or _is_word(letters[0])) and len(runs) <= 3:
        return ""
    return "" if all(map(_is_word, letters)) else piece


def is_token(text: str, shortest: int = SHORTEST_TOKEN) -> bool:
    """Return whether a part of an address looks randomly generated, like a token or a key, and not like a name."""
    text = unquote(text)
    if JWT.search(text) or BOT.fullmatch(text):
        return True
    stem = SUFFIX.sub("", text)
    if GROUPS.fullmatch(stem):
        return True
    if len(stem) < shortest or not re.search("[A-Za-z]", stem) or BLANK in stem:
        return False
    if re.fullmatch(r"[0-9a-f]+|[0-9A-F]+", stem):
        return bool(re.search(r"\d", stem))
    tangle = "".join(map(_tangle, re.split(r"[-_.~ ]", stem)))
    kinds = [(run[0].isdigit(), run[0].isupper()) for run in RUNS.findall(tangle)]
    return len(tangle) >= min(SHORTEST_TANGLE, shortest) and (len(kinds) >= 3 or len(tangle) >= shortest)


def _without_tokens(tail: str, scheme: str) -> str:
    """Hide everything that looks like a token in a path, a query and a fragment, but not the name of a video file."""
    path = re.split(r"[?#]", tail, maxsplit=1)[0]
    name = path.rpartition("/")[2]
    is_file = scheme.startswith(("http", "ftp")) and PurePosixPath(name).suffix.lower() in FILE_SUFFIXES
    is_key = scheme.startswith("rtmp")
    parts = BETWEEN.split(tail)
    at_end = len(BETWEEN.split(path)) - 1
    for place in range(0, len(parts), 2):
        part = parts[place]
        if is_file and place == at_end and not JWT.search(part):
            continue
        shortest = SHORTEST_STREAM_KEY if is_key and place == at_end else SHORTEST_TOKEN
        follows = place > 1 and parts[place - 1] == "/" and parts[place - 2].lower() in PATH_WORDS
        if part and (follows or is_token(part, shortest)):
            suffix = SUFFIX.search(part)
            parts[place] = BLANK + (suffix[0] if suffix and not JWT.search(part) else "")
    return "".join(parts)


# -- whole addresses ---------------------------------------------------------------------------------------------------


def without_password(address: str) -> str:
    """Return an address for display, with ``***`` in place of possible secrets.

    That is: everything up to the last ``@`` before the host; values of keys such as ``password``, ``token`` or ``sid``,
    in a query and in a path; and parts that look randomly generated, unless they are the name of a video file. A text
    that is not an address is returned unchanged.
    """
    starts = [match.start() for match in SCHEME.finditer(address)]
    if not starts:
        return address
    if len(address) > LONGEST_ADDRESS:
        return f"{address[: address.index('://', starts[0])]}://{BLANK}"
    shown, begin = address[: starts[0]], starts[0]
    for following in starts[1:]:
        if _is_whole(address[begin:following]):  # it contains a second address; otherwise a password contains "://"
            shown += _one_shown(address[begin:following])
            begin = following
    return shown + _one_shown(address[begin:])


def login_of(address: str) -> str:
    """Return user and password of an address as it has them, with the ``@`` after them; nothing if it has none."""
    rest = address.partition("://")[2]
    return rest[: _host_start(rest)] if _host_start(_without_values(rest)) > 0 else ""


def shown_server(address: str) -> str:
    """Return scheme and host of an address for display, without path and query."""
    scheme, _, rest = without_password(address).partition("://")
    return f"{scheme}://{_authority(rest)}"


def shown_path(address: str) -> str:
    """Return host and path of an address for display."""
    return re.split("[?#]", without_password(address).partition("://")[2].removeprefix(f"{BLANK}@"), maxsplit=1)[0]


def _is_whole(address: str) -> bool:
    host = _authority(address.partition("://")[2]).rpartition("@")[2]
    return bool(host) and _host_kind(host) != "none"


def _one_shown(address: str) -> str:
    scheme, _, rest = address.partition("://")
    if scheme.lower() == "file":
        return address
    rest = _without_values(rest)  # first, because a password in a query may also hold an "@"
    start = _host_start(rest)
    host = _authority(rest[start:])
    tail = rest[start + len(host) :]
    user = rest[:start] if rest[:start] in ("", "@") else f"{BLANK}@"
    tail = INNER_USER.sub(rf"\1{BLANK}%40", tail)
    return f"{scheme}://{user}{_shown_host(host)}{_without_tokens(tail, scheme.lower())}"


NO_SCHEME = re.compile(r"[^/\s:@]+:[^@]*@.")


def shown_argument(argument: str) -> str:
    """Return an argument that is not a file, for display: it may be an address with a missing or misspelt scheme."""
    if NO_SCHEME.match(argument) and not IN_TEXT.match(argument):
        return without_password(f"rtsp://{argument}").removeprefix("rtsp://")
    return conceal(argument, argument)


def conceal(text: str, *known: str) -> str:
    """Return a message with the secrets in its addresses hidden.

    Args:
        text: a message that may quote addresses, such as another library's error.
        known: texts that it may quote, such as the arguments of the command. Addresses may hold spaces, so a message
            alone does not show where they end.
    """
    if len(text) > LONGEST_TEXT:
        # The second half starts after a space, because it may begin in the middle of an address.
        text = f"{text[: LONGEST_TEXT // 2]} [...] {text[-LONGEST_TEXT // 2 :].partition(' ')[2]}"
    for given in known:
        if (scheme := SCHEME.search(given)) is not None:
            address = given[scheme.start() :]
            for quoted in (address, repr(address)[1:-1], str(PurePosixPath(address))):
                text = text.replace(quoted, without_password(address))
    return IN_TEXT.sub(lambda found: _shown_in_text(found[0]), text)


def _shown_in_text(found: str) -> str:
    address = found.rstrip(AFTER_TEXT)
    scheme, slashes, rest = re.split(r"(:/+)", address, maxsplit=1) if ":/" in address else (address, "", "")
    shown = without_password(f"{scheme}://{rest}").partition("://")[2] if slashes else ""
    return f"{scheme}{slashes}{shown}{found[len(address) :]}"


def shown_failure(name: str, error: object) -> tuple[str, str]:
    """Return the name of a clip and why it could not be read, without secrets: a list may hold addresses."""
    return conceal(name, name), conceal(str(error), name)


MUST_BE_ENCODED = re.compile(r"[#?/@\[\]\\ ]|%(?![0-9A-Fa-f]{2})")


def encoding_hint(address: str) -> str:
    """Return the end of an error for an address whose user or password is not percent-encoded, otherwise nothing."""
    scheme, _, rest = address.partition("://")
    has_user = scheme.lower() != "file" and _host_start(_without_values(rest)) > 0
    start = _host_start(rest) if has_user else 0
    odd = sorted(set(MUST_BE_ENCODED.findall(rest[: max(0, start - 1)])))
    if not odd:
        return ""
    escapes = ", ".join(f"{'a space' if each == ' ' else each} as {quote(each, safe='')}" for each in odd)
    return f": its user or password must be percent-encoded: {escapes}"
