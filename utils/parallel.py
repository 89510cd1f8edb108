"""The same function for many items: in this process, in several, or on a Dask cluster."""

import contextlib
import signal
from collections import deque
from concurrent.futures import CancelledError, ThreadPoolExecutor
from multiprocessing import resource_tracker

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.backend import resource_tracker as loky_resource_tracker
from joblib.externals.loky.process_executor import TerminatedWorkerError

from utils.errors import InputError


def map_unordered(function, items, *, workers=0, dask_scheduler=None, lost=None):
    """Yield (item, ``function(item)``) for each of `items` as they are done.

    `workers` processes of this machine share the work; with 0 or 1 the calling process does it all. With
    `dask_scheduler` ("tcp://host:port") the workers of that Dask cluster do the work. They must have this code and see
    the same files under the same paths. The cluster gives the item of a worker that dies to another one; where several
    died with it, ``lost(item)`` is its result. Raises what `function` raises, and `InputError` if a process dies (on a
    cluster: with every try, if there is no `lost`), or the cluster cannot be reached or is lost.
    """
    if dask_scheduler is not None:
        yield from _on_cluster(function, items, dask_scheduler, lost)
        return
    # The patch stream's processes wait in loky's reusable executor. joblib would mistake them for its own.
    get_reusable_executor(reuse=True).shutdown()
    parallel = joblib.Parallel(n_jobs=max(1, workers), return_as="generator_unordered")
    try:
        with ctrl_c_blocked():
            results = parallel(joblib.delayed(_with_item)(function, item) for item in items)
        yield from results
    except TerminatedWorkerError as error:
        raise InputError(
            f"WORKERS = {workers}: a worker process was killed, probably out of memory; run the same command again "
            "(finished work is kept), with fewer WORKERS if it recurs"
        ) from error


@contextlib.contextmanager
def ctrl_c_blocked():
    """Processes started in the block ignore Ctrl-C, which the terminal sends to all processes.

    The main process decides what Ctrl-C means. If it has other threads it receives the signal as always, else at the
    end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    for tracker in (resource_tracker, loky_resource_tracker):
        tracker.ensure_running()  # starting later, it would unblock the signals again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ahead(iterable, count):
    """Yield the elements of `iterable` while a thread prepares up to `count` of them ahead.

    Exceptions of `iterable` are raised here unchanged.
    """
    iterator, end = iter(iterable), object()
    with ThreadPoolExecutor(1, "ahead") as thread:
        waiting = deque(thread.submit(next, iterator, end) for _ in range(count))
        try:
            while (element := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, iterator, end))
                yield element
        finally:
            for future in waiting:
                future.cancel()


def _with_item(function, item):
    return item, function(item)


def _on_cluster(function, items, scheduler, lost):
    """`map_unordered` on a Dask cluster."""
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise InputError("DASK_SCHEDULER is set and Dask is not installed; pip install distributed") from error
    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise InputError(f"DASK_SCHEDULER = {scheduler!r}: no Dask scheduler answers there ({error})") from error
    with client:
        item_of = {client.submit(function, item, pure=False): item for item in items}
        for future in as_completed(item_of):
            item = item_of.pop(future)
            try:
                result = future.result()  # waits once more where its worker died before handing it over
            except KilledWorker as error:
                if lost is None:
                    raise InputError(f"every Dask worker that tried {item} died, probably out of memory") from error
                result = lost(item)
            except CancelledError as error:
                raise InputError(
                    f"DASK_SCHEDULER = {scheduler!r}: the scheduler stopped or started anew; run the same command "
                    "again (finished work is kept)"
                ) from error
            yield item, result
