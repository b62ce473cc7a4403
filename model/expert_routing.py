"""The routing of tokens to experts, which PHP and DM-Adapter share."""
import torch
from torch import nn


class RoutedExperts(nn.Module):
    """Base class of a mixture of E experts, of which each token uses ``topk`` (DM-Adapter, AAAI 2025).

    A gate reads the token and a learned vector. The outputs of the selected experts are averaged with the softmax of
    their gate logits as weights. A subclass computes these outputs.

    It also sets ``topk``, the list ``experts``, the layers ``input_gate`` and ``task_gate`` (D to E, without bias) and
    the scalar ``alpha``, the weight of the learned vector.
    """

    def route(self, x, task_param):
        """Gate logits, weights and selected experts of each token, [B, L, E] each.

        They are computed in float32: an error of 0.5% of a logit can select another expert.

        Args:
            x: [B, L, D].
            task_param: [D], the learned vector.
        """
        with torch.autocast(x.device.type, enabled=False):
            logits = (1 - self.alpha) * self.input_gate(x.float()) + self.alpha * self.task_gate(task_param)
            best = logits.topk(self.topk, dim=-1)
            weights = torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(dim=-1))
            selected = torch.zeros_like(logits).scatter(-1, best.indices, 1.0)
        return logits, weights, selected

    def stack_parameters(self, part):
        """Stack the weights and the biases of all experts' layer ``part``."""
        parts = [getattr(expert, part) for expert in self.experts]
        return torch.stack([part.weight for part in parts]), torch.stack([part.bias for part in parts])
