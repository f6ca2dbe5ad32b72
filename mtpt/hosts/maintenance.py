"""Hears of it when the machine is about to be taken away: the metadata server of Google Cloud.

https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice: `maintenance-event`
becomes TERMINATE_ON_HOST_MAINTENANCE about an hour before (a minute on some machines), `preempted`
TRUE half a minute before a preemptible machine ends.
"""

import contextlib
import pathlib
import threading
import urllib.request
from collections.abc import Callable

from mtpt.config import UserError

GOOGLE = 'http://metadata.google.internal/computeMetadata/v1/instance'
PRODUCT = pathlib.Path('/sys/class/dmi/id/product_name')
PERIOD = 5.0  # seconds between two questions
PATIENCE = 2.0  # seconds for an answer


def server(setting: str) -> str:
    """Where to ask, '' for nowhere.

    setting: 'auto' (Google's machines only), 'off', or the address of a server like Google's.

    Raises:
      UserError: any other setting.
    """
    if setting == 'off':
        return ''
    if setting == 'auto':
        with contextlib.suppress(OSError):
            return GOOGLE if 'Google' in PRODUCT.read_text() else ''
        return ''
    if not setting.startswith('http://'):
        raise UserError(
            f"checkpoint.notices={setting!r} must be 'auto', 'off' or an address that begins with "
            'http://'
        )
    return setting.rstrip('/')


def listen(address: str, tell: Callable[[str], None], period: float = PERIOD) -> Callable[[], None]:
    """Asks again and again in a thread, until the first notice, which is told.

    Returns:
      What ends the thread.
    """
    done = threading.Event()

    def work() -> None:
        while not done.wait(period if asked[0] else 0):
            asked[0] = True
            if why := notice(address):
                if not done.is_set():
                    tell(why)
                return

    asked = [False]
    threading.Thread(target=work, daemon=True).start()
    return done.set


def notice(address: str) -> str:
    """What the server says is about to happen, '' for nothing or no answer."""
    if _asked(f'{address}/preempted').upper() == 'TRUE':
        return 'a preemption notice'
    if _asked(f'{address}/maintenance-event').upper().startswith('TERMINATE'):
        return 'a maintenance notice'
    return ''


def _asked(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={'Metadata-Flavor': 'Google'})
    try:
        with opener.open(request, timeout=PATIENCE) as answer:
            return answer.read(200).decode('utf-8', 'replace').strip()
    except (OSError, ValueError):
        return ''
