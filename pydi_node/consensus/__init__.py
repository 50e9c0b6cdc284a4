"""Raft as a pure object: messages, ticks and disk completions in, ``Ready`` out.

For whom: ``replica.py`` drives one ``Raft`` per node; the runtime and the simulator do the IO that
a ``Ready`` asks for. Never here: clock, socket, file, thread, global randomness. The same inputs
in the same order give the same outputs.

Source: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm" (the Raft
paper), and Ongaro's thesis; sections are named where they matter.


The driver's loop
-----------------

    raft = Raft(config, hard_state, snapshot, entries, applied)

    # inputs, any number, in any order
    raft.tick()                                  # every tick of the driver's clock
    raft.step(codec.decode(plain))               # a message from a peer
    first_index = raft.propose([data, data, …])  # leader only
    raft.read_index(context)                     # any node

    while raft.has_ready():
        ready = raft.ready()
        send(ready.messages)                     # at once, before touching the disk
        if ready.must_persist or ready.messages_after_persist:
            disk_queue.put(ready)                # one queue, in order, several may wait in it
        apply(ready.committed); raft.applied(ready.committed[-1].index)    # now or later, in order
        answer(ready.reads)                      # each once its index is applied
        …snapshot effects, see below…

    # the disk worker, for each Ready in order (it may join several into one fdatasync):
    if ready.must_persist:
        cut ready.truncate_from, append ready.entries, write ready.hard_state, fdatasync
    # back in the loop:
        raft.persisted(ready.number)             # only for those with must_persist
    send(ready.messages_after_persist)
    …and look at has_ready() again

Rules for the driver:

- ``persisted`` is called once for each Ready with ``must_persist``, in the order of the numbers.
  ``persisted(n)`` also stands for all before n, so joined writes need one call.
- A failed write or fdatasync ends the node. Never retry, never call ``persisted`` for it.
- ``committed`` holds only entries that are durable on this node, so the tree is never ahead of
  the log. The next Ready may bring more before ``applied`` was called for these.
- Messages may be lost, repeated or reordered. Keeping the order per peer is faster.
- Any number of inputs may be given before ``ready``: the more, the larger the batches. Appends
  to followers are built inside ``ready``.
- After a restart: the hard state, the entries read back from the disk and the ``SnapshotMeta``
  that ``compact`` or ``snapshot_installed`` last gave, both passed through ``log.recovered``
  (a crash may have hit the installation of a snapshot), and the tree's applied index.


Signatures (pydi_node.consensus.raft; records in .types, bytes and plain tuples in .codec)
------------------------------------------------------------------------------------------

    class Raft:
        def __init__(self, config: Config, hard_state: HardState, snapshot: SnapshotMeta,
                     entries: Sequence[Entry], applied: LogIndex) -> None

        # read-only for callers
        role: Role; term: Term; leader: NodeNumber | None; node: NodeNumber
        membership: Membership           # newest in the log, committed or not
        last_index, commit_index, applied_index, durable_index, first_index: LogIndex
        def status(self) -> Status

        # inputs
        def tick(self) -> None
        def step(self, message: Message) -> None
        def propose(self, datas: Sequence[bytes]) -> LogIndex
            # index of the first; all or none. NotLeaderError; BusyError (too many unapplied
            # bytes, or a transfer of leadership is under way): nothing was accepted, try later.
            # An accepted proposal may still be lost with its leader: watch for another term at
            # its index in ``committed``, or for role_change.
        def propose_membership(self, change: MembershipChange) -> LogIndex
            # NotLeaderError; BusyError (another change or this term's first entry uncommitted, a
            # learner that has not caught up); NoQuorumError (too few voters of the new
            # membership answer now); UserError (nonsense: last voter, sixth voter …).
        def read_index(self, context: object) -> None
            # NotLeaderError(None) when no leader is known; else ends in Ready.reads or
            # Ready.failed_reads (lost messages are asked again by tick).
        def transfer_leadership(self, to: NodeNumber) -> None    # NotLeaderError, UserError
        def attend(self, number: NodeNumber, attentive: bool) -> None
            # Whether somebody uses that node. One that nobody uses and whose disk no majority needs
            # gets entries with the next tick (leadership.py).
        holds_back: bool; def flush(self) -> None
            # True for longer than disk and network take: flush, and every follower gets everything.
        def campaign(self) -> None       # elect now, as if the election time-out had passed
        def persisted(self, number: int) -> None
        def applied(self, index: LogIndex) -> None
        def compact(self, index: LogIndex) -> SnapshotMeta | None
            # index: applied *and durable* in the tree. Cuts the log behind it, less the trailing
            # entries. The new front: persist it, then delete the files before it. None: no change.

        # snapshots, leader's side
        def snapshot_taken(self, snapshot_id: bytes, meta: SnapshotMeta, size: int) -> None
            # answers Ready.snapshot_wanted; meta = raft.snapshot_meta(tree's applied index)
        def snapshot_meta(self, index: LogIndex) -> SnapshotMeta   # first_index - 1 .. commit
        def snapshot_read(self, read: SnapshotRead, data: bytes) -> None
        def snapshot_lost(self, snapshot_id: bytes) -> None        # could not take or read it
        # snapshots, follower's side
        def snapshot_partial(self, snapshot_id: bytes, offset: int) -> None   # found at start
        def snapshot_written(self, write: SnapshotWrite) -> None
        def snapshot_installed(self, install: SnapshotInstall) -> None
        def snapshot_refused(self, snapshot_id: bytes) -> None
            # checksum wrong, or a piece can't be written: start over

        # outputs
        def has_ready(self) -> bool
        def ready(self) -> Ready


Snapshots
---------

The leader asks once (``snapshot_wanted``) when a follower needs entries that were cut. The driver
copies the tree as of its applied index into a file and names it by ``snapshot_id``: the checksum
of the whole file, so equal ids are equal bytes and a transfer goes on under another leader.
``snapshots_dropped`` says when it may go.

The follower writes pieces to a temporary file. With ``Ready.snapshot`` the file is complete, and
everything handed out in ``committed`` was applied:

1. wait until every Ready before this one is persisted;
2. check the file against its id; if wrong, ``snapshot_refused``;
3. keep ``SnapshotMeta`` beside it for ``log.recovered``, put the file in the tree's place
   (fsync, rename, fsync dir);
4. reset the log to ``SnapshotMeta`` with no entries, hard state kept, durable;
5. ``snapshot_installed``. Until then the core hands out no entries, neither to persist nor to
   apply; a hard state may come and takes the ordinary way.

The pieces of the file need no fdatasync before step 2.
"""
