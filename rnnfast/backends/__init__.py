"""One file per backend; the contract is `base.Backend`, the order of preference is in `rnnfast.dispatch`."""
