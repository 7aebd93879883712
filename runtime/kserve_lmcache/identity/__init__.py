"""What a model is by its content, so that cached KV of other weights can never be hit."""

from kserve_lmcache.identity.errors import IdentityError
from kserve_lmcache.identity.weights import Fingerprint, fingerprint

__all__ = ["Fingerprint", "IdentityError", "fingerprint"]
