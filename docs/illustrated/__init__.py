"""The Illustrated DPO: what makes docs/dpo.md and its figures, out of dpo_core.

It lies in docs because the service needs none of it. tests/theory imports it: what is drawn is what is proved.
"""
