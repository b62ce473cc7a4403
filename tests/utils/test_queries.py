"""The results of queries."""
import numpy as np

from utils.queries import QueryResults


def test_figures_are_means_of_what_queries_reach():
    one = QueryResults(np.array([7, 7, 9]), np.array([1, 12, 3]), np.array([100.0, 8.123456, 40]),
                       np.array([50.0, 1, 40]), ['a man', 'a woman', 'a coat'])
    assert one.metric_values('R1').tolist() == [100, 0, 0] and one.metric_values('R5').tolist() == [100, 0, 100]
    assert one.metric_values('R10').tolist() == [100, 0, 100]
    assert one.metric_values('mAP').tolist() == one.AP.tolist()
    assert one.metric_values('mINP').tolist() == one.INP.tolist()
