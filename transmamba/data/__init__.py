"""Benchmarks: their files in, their scores out. Nothing here knows a model or a loss."""

from transmamba.data.ranking import Ranking as Ranking
from transmamba.data.ranking import RetrievalScores as RetrievalScores
from transmamba.data.ranking import retrieval_scores as retrieval_scores
from transmamba.data.retrieval import Pair as Pair
from transmamba.data.retrieval import RetrievalDataset as RetrievalDataset
from transmamba.data.retrieval import VideoCaptions as VideoCaptions
from transmamba.data.retrieval import didemo as didemo
from transmamba.data.retrieval import msr_vtt as msr_vtt
from transmamba.data.video import normalise as normalise
from transmamba.data.video import read_frames as read_frames
