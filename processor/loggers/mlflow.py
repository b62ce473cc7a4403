"""``--logger mlflow``: MLflow."""
import os
import pathlib
import time

from processor.loggers import MetricsLogger

MAX_PARAMS = 100    # of one call of MLflow
MAX_PARAM_LENGTH = 500


class MlflowLogger(MetricsLogger):
    """A run of MLflow, in the experiment of MLFLOW_EXPERIMENT_NAME, else pedestal.

    The server is that of MLFLOW_TRACKING_URI, else the folder ``mlruns`` in the run's folder.
    """

    name = 'mlflow'
    package = 'mlflow'
    records = 'the metrics of MLflow'

    def __init__(self, folder, options, step=0, history=()):
        super().__init__(folder, options, step, history)
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient
        self.metric_class = Metric
        server = os.environ.get('MLFLOW_TRACKING_URI')
        if not server:
            os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')    # else MLflow 3 refuses folders
            server = pathlib.Path(os.path.abspath(folder), 'mlruns').as_uri()
        self.client = MlflowClient(tracking_uri=server)
        self.run_id = self.read_run_id()
        if self.run_id:
            self.client.update_run(self.run_id, status='RUNNING')
            return
        self.run_id = self.create_run()
        self.write_run_id(self.run_id)
        params = [Param(name, str(value)[:MAX_PARAM_LENGTH]) for name, value in options.items()]
        for start in range(0, len(params), MAX_PARAMS):
            self.client.log_batch(self.run_id, params=params[start:start + MAX_PARAMS])
        self.log_history(history)

    def create_run(self):
        """Create a run in the experiment, and return its id."""
        name = os.environ.get('MLFLOW_EXPERIMENT_NAME', 'pedestal')
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
        return self.client.create_run(experiment_id, run_name=self.run_name).info.run_id

    def log(self, metrics, step, epoch):
        milliseconds = int(1000 * time.time())
        # Without 'epoch': in a folder, it would be a file with the name of the folder of 'epoch/loss'.
        self.client.log_batch(self.run_id, metrics=[self.metric_class(name, float(value), milliseconds, step)
                                                    for name, value in metrics.items()])

    def close(self):
        self.client.set_terminated(self.run_id)
