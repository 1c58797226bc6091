"""The data plane's protocol: messages, their encoding, the socket."""
