"""Synchronous speculation whose drafts come from the last stage, which knows the verdicts first. Simulated only."""

from pipeinfer.core.strategies.speculative import Speculative


class SyncTail(Speculative):
    """As `speculative`, with its options, but the last stage drafts the next round: no rank drafts, and neither orders
    nor proposals travel. The simulator has them arrive at once; that draft and target share a rank costs it nothing,
    which is right where they take turns, and flatters it while the prompt is read."""

    simulated_only = "drafts from the target's last stage"
    drafts_on_last_stage = True
