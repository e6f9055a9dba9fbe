"""The queues' names. Three of them, since a prefetched message waits behind the one before it:

- ``custody``: events, where somebody waits for the result;
- ``maintenance``: the reconciler's ticks, which must not stand behind a backlog of events (it is what ends them);
- ``sweep``: probes and checks, long batches against customers' keys, with workers of their own.

Imports nothing: who only names a queue loads no library of queues.
"""

CUSTODY, MAINTENANCE, SWEEP = "custody", "maintenance", "sweep"
QUEUES = (CUSTODY, MAINTENANCE, SWEEP)
