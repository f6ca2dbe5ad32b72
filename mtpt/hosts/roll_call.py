"""The roll call before a run: are all processes there, and are they the same?

Process 0 listens on the coordinator's port, which JAX takes over afterwards; every other process
sends one line of JSON (its number, host, and facts such as the config and the versions), and gets
one line back: that all are here, or what is wrong, which is then the same sentence everywhere.
(JAX's own start gives a process that waits in vain no word: it aborts.)
"""

import contextlib
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mtpt.config import UserError

LINE = 2**20  # bytes that a process may say of itself
SHOWN = 4  # differences of a process that are named
GRACE = 15.0  # seconds for an answer that is on its way


class Entry(NamedTuple):
    """What a process says of itself; facts are compared with those of process 0."""

    process: int
    processes: int
    host: str
    pid: int
    facts: dict[str, str]


def entry(process: int, processes: int, facts: Mapping[str, str]) -> Entry:
    """The entry of this process."""
    return Entry(process, processes, socket.gethostname(), os.getpid(), dict(facts))


def take(
    address: str, me: Entry, seconds: float, say: Callable[[str], None], where: str = ''
) -> None:
    """Returns once all processes of the run have called it, and are the same.

    Args:
      address: HOST:PORT of process 0.
      me: this process.
      seconds: how long to wait.
      say: is told after a while who is waited for.
      where: what the launcher says of the hosts, told when some are missing.

    Raises:
      UserError: who is missing, twice there or different; process 0 does not answer.
    """
    host, port = split(address)
    wrong = (
        _hold(port, me, seconds, say, where)
        if me.process == 0
        else _answer(host, port, me, seconds)
    )
    if wrong:
        raise UserError(wrong)


def split(address: str) -> tuple[str, int]:
    """HOST:PORT in two.

    Raises:
      UserError: it is none.
    """
    host, colon, port = address.rpartition(':')
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(f'the address of process 0 must be HOST:PORT, got {address!r}')
    return host.strip('[]'), int(port)


def different(entries: Mapping[int, Entry]) -> str:
    """One sentence on all that differ from process 0, '' where none does."""
    told, like = [], entries[0]
    for number in sorted(entries):
        other = entries[number]
        names = sorted(like.facts.keys() | other.facts.keys())
        wrong = [
            f'{name} ({_shown(other.facts.get(name))}, not {_shown(like.facts.get(name))})'
            for name in names
            if other.facts.get(name) != like.facts.get(name)
        ]
        more = f' and {len(wrong) - SHOWN} more' if len(wrong) > SHOWN else ''
        if wrong:
            told.append(
                f'process {number} on {_shown(other.host)} in {", ".join(wrong[:SHOWN])}{more}'
            )
    if not told:
        return ''
    return (
        f'the processes differ from process 0 on {_shown(like.host)}: {"; ".join(told)}; start all '
        'with the same command, code and environment'
    )


def _hold(port: int, me: Entry, seconds: float, say: Callable[[str], None], where: str) -> str:
    """Process 0: collects the others and answers them; returns what is wrong."""
    end, here = time.monotonic() + seconds, {}
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(_listen(port, end))
        wrong = _collect(listener, me, here, end, say)
        for connection, _ in here.values():
            opened.enter_context(connection)
        entries = {0: me} | {number: other for number, (_, other) in here.items()}
        wrong = wrong or _missing(entries, me.processes, seconds, where) or different(entries)
        line = json.dumps(dict(mtpt='roll call', wrong=wrong)).encode() + b'\n'
        for connection, _ in here.values():
            with contextlib.suppress(OSError):
                connection.sendall(line)
        for connection, _ in here.values():  # the port is free sooner where others hang up first
            with contextlib.suppress(OSError):
                connection.settimeout(2)
                connection.recv(1)
    return wrong


def _listen(port: int, end: float) -> socket.socket:
    while True:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(('', port))
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f'port {port} of {socket.gethostname()} cannot be listened on '
                    f'({error.strerror}); end what has it, perhaps a second process 0, or take '
                    'another port'
                ) from None
            time.sleep(0.5)  # a run that is just ending may have it


def _collect(
    listener: socket.socket,
    me: Entry,
    here: dict[int, tuple[socket.socket, Entry]],
    end: float,
    say: Callable[[str], None],
) -> str:
    """Fills `here` until all are there or the time is over; returns what is wrong with one."""
    word = time.monotonic() + 20
    listener.settimeout(0.2)
    while time.monotonic() < end:
        for number, (connection, _) in list(here.items()):
            if select.select([connection], [], [], 0)[0]:  # it says nothing more, so it has gone
                connection.close()
                del here[number]
        if len(here) == me.processes - 1:
            break
        if time.monotonic() > word:
            word += 60
            say(f'waiting for {_listed(me.processes, {0, *here})}')
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        other = _read(connection)
        if other is None:
            connection.close()
        elif wrong := _misplaced(other, me, here):
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(dict(mtpt='roll call', wrong=wrong)).encode() + b'\n')
            connection.close()
            return wrong
        else:
            here[other.process] = connection, other
    return ''


def _misplaced(other: Entry, me: Entry, here: Mapping[int, Any]) -> str:
    if other.processes != me.processes:
        return (
            f'process {other.process} on {_shown(other.host)} was told of {other.processes} '
            f'processes, and process 0 on {_shown(me.host)} of {me.processes}; give all the same '
            '--processes'
        )
    first = me if other.process == 0 else here[other.process][1] if other.process in here else None
    if first:
        return (
            f'process {other.process} was started twice, on {_shown(first.host)} (pid {first.pid}) '
            f'and on {_shown(other.host)} (pid {other.pid}); give each a number of its own from 0 '
            f'to {me.processes - 1}'
        )
    return ''


def _read(connection: socket.socket) -> Entry | None:
    """What a process says of itself; None for whoever else calls here."""
    try:
        said = json.loads(_line(connection, 5))
        numbers = [said[name] for name in ('process', 'processes', 'pid')]
        facts = {str(name): str(text) for name, text in said['facts'].items()}
        whole = all(type(n) is int for n in numbers) and 0 <= numbers[0] < numbers[1]
        return (
            Entry(numbers[0], numbers[1], str(said['host']), numbers[2], facts) if whole else None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _line(connection: socket.socket, seconds: float) -> bytes:
    """One line, within a time and a length."""
    end, got = time.monotonic() + seconds, b''
    while not got.endswith(b'\n'):
        connection.settimeout(max(0.01, end - time.monotonic()))
        more = connection.recv(65536)
        got += more
        if not more or len(got) > LINE or time.monotonic() > end:
            break
    return got


def _answer(host: str, port: int, me: Entry, seconds: float) -> str:
    """Another process: sends its entry until process 0 answers; returns what is wrong."""
    began, end, why = time.monotonic(), time.monotonic() + seconds, ''
    line = json.dumps(me._asdict()).encode() + b'\n'
    while True:
        try:
            with socket.create_connection((host, port), timeout=5) as connection:
                connection.sendall(line)
                got = _line(connection, seconds + GRACE)
            said = json.loads(got) if got.startswith(b'{') else {}
            if said.get('mtpt') == 'roll call':
                return str(said.get('wrong', ''))
            why = 'what listens there takes no roll call: another program, or a run that has begun'
            if not got:
                why = 'it hung up'
        except socket.gaierror:
            why = f'no address is known for {host}'
        except (OSError, ValueError) as error:
            why = getattr(error, 'strerror', None) or str(error)
        if time.monotonic() > end:
            waited = time.monotonic() - began
            return (
                f'process 0 at {host}:{port} did not answer process {me.process} on {me.host} '
                f'within {waited:.0f} s ({why}); start it, or mend the address'
            )
        time.sleep(0.3)


def _missing(entries: Mapping[int, Entry], processes: int, seconds: float, where: str) -> str:
    if len(entries) == processes:
        return ''
    came = ', '.join(f'{n} on {_shown(entries[n].host)}' for n in sorted(entries)[:64])
    return (
        f'{_listed(processes, entries)} of {processes} did not start within {seconds:g} s '
        f'(there are: {came}{where}); look at what those hosts wrote, and start all again'
    )


def _listed(processes: int, here: Any) -> str:
    missing = [str(n) for n in range(processes) if n not in here]
    more = f', ... ({len(missing)} in all)' if len(missing) > 32 else ''
    return f'process{"es" * (len(missing) > 1)} {", ".join(missing[:32])}{more}'


def _shown(text: str | None) -> str:
    """What another process said, fit for a terminal."""
    if text is None:
        return 'nothing'
    clean = ''.join(c if c.isprintable() else '?' for c in text)
    return clean if len(clean) <= 60 else f'{clean[:57]}...'


def on_stderr(text: str) -> None:
    print(f'mtpt: {text}', file=sys.stderr, flush=True)
