"""Plain ViTs of timm with patches removed: classification and features on ragged tokens."""
