"""From a trained run to a bundle, which `sidrec.serve` scores."""
