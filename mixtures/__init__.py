"""Tasks and mixtures, one file a family of tasks; importing one registers it in SeqIO."""

from mtpt.data.objectives import OBJECTIVE_LENGTHS, OBJECTIVES
from mtpt.tasks import bind_objectives

# SeqIO's own loading of raw text corrupts it with these; the two packages do not import each other.
bind_objectives(OBJECTIVES, OBJECTIVE_LENGTHS)
