"""The front door of the fleet: one OpenAI URL that knows models, prefixes, load and tenants.

Pure modules decide (`fleet`, `resolve`, `prefix_text`, `prefix_index`, `score`, `work`, `fair_queue`, `quota`,
`circuit`, `retry_budget`): they take the time as an argument and do no I/O. The rest is the shell around them.
"""
