"""The training library and program: DPO on tensors, files and processes. Knows no database and no HTTP."""
