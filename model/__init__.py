"""The network: front end, ECAPA-TDNN, training, the model bundle and the inference engine."""
