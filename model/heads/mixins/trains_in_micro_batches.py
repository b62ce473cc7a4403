"""Heads that read tokens and train on a part of a batch at a time."""


class TrainsInMicroBatches:
    """A head that reads tokens, and whose losses of the parts of a batch add up to the loss of the batch.

    The parts are micro batches (``--micro_batch``), and the rows of several processes. Heads that read embeddings only
    do not need this class: they always get the embeddings of the global batch.
    """

    def micro_batch_weight(self, micro_batch, batch):
        """Factor of the head's results on a micro batch: a number or a scalar tensor.

        With these factors, the results of all micro batches add up to those of the batch. The default is the fraction
        of the batch's samples, which fits a mean over samples.

        Args:
            micro_batch: {field: tensor} of the micro batch.
            batch: {field: tensor} of the global batch.
        """
        return len(micro_batch['pids']) / len(batch['pids'])
