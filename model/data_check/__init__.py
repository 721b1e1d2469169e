"""What a data set holds and what is wrong with it, before an hour of training is spent."""
