"""How a replica works; the simulation draws other values, the runtime takes these."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydi_node.handover import HandoverConfig
from pydi_node.tree.committer import CommitConfig


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """Periods in seconds of Now.mono_s; they only decide when, never whether, something is done."""

    tick_s: float = 0.05  # how far apart Tick events are; raft counts its time-outs in them
    # A forwarded command that isn't applied yet is sent again: its message or its leader got lost.
    forward_retry_s: float = 1.0
    # How often members ask for their place and the leader looks for vanished ones.
    members_period_s: float = 1.0
    # Entries applied between two checkpoints of the tree, behind which the log is cut. A checkpoint
    # costs two fsyncs in the loop; 5,000 entries are 1 MiB to replay and some 6 MB of memory.
    cut_entries: int = 5_000
    cut_bytes: int = 8 << 20  # and after so much of larger ones: they carry small files
    cut_idle_s: float = 60.0  # and after this time if anything was applied at all
    # Entries applied in one piece: about 50 ms in which nothing else runs.
    apply_batch_max: int = 1000
    commit: CommitConfig = field(default_factory=CommitConfig)
    proposals_per_step_max: int = 2000  # bounds one append; the rest goes with the next one
    # Likewise. Larger ones hold up all that comes meanwhile; one larger command goes alone.
    proposal_bytes_per_step_max: int = 4 << 20
    # Of other nodes, waiting for the log on the leader; what is beyond is sent again. A command of
    # many extents is seven times as large in memory as in bytes.
    forwarded_max: int = 10_000
    forwarded_bytes_max: int = 8 << 20
    # Of this node's own clients, without an outcome yet; beyond it they get BusyError. Files of
    # 32 KiB made by a thousand threads at a time.
    pending_bytes_max: int = 32 << 20
    # A commit that takes longer has every follower's disk asked, not only a majority's. Longer than
    # a network and a disk take; shorter than anybody notices, for it is what a dead follower costs.
    overdue_s: float = 0.01
    handover: HandoverConfig = field(default_factory=HandoverConfig)
