"""The HTTP edge: parse, call one control_plane function, shape the answer."""
