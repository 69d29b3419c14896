"""The engine: a process that computes tokens for one model. It knows nothing of documents, databases or HTTP."""
