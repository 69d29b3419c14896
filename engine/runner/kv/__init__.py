"""KV memory: the tensors on the device, and the copies to and from host memory."""
