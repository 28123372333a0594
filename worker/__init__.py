"""The execution edge: claim work, launch dpo_core, supervise, report."""
