"""Eight fake devices and a persistent compilation cache for every test."""

import os
import pathlib
import sys
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', os.path.join(tempfile.gettempdir(), 'mtpt-test-compilations')
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

if os.environ.get('MTPT_LIVE'):  # `make test-parity`: a missing library is a failure, not a skip
    import torch  # noqa: F401
    import transformers  # noqa: F401
