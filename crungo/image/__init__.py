"""Images at rest: references, manifests, the store, layers."""
