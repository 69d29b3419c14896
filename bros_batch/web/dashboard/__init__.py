"""The dashboard: server-rendered pages whose changed parts arrive over an event stream."""
