"""Benchmarks: their files in, their scores out. Nothing here knows a model or a loss."""

from transmamba.data.conversation import LLAMA_3 as LLAMA_3
from transmamba.data.conversation import VICUNA as VICUNA
from transmamba.data.conversation import Conversation as Conversation
from transmamba.data.conversation import Template as Template
from transmamba.data.conversation import Turn as Turn
from transmamba.data.conversation import collate as collate
from transmamba.data.conversation import encode as encode
from transmamba.data.llava import ConversationDataset as ConversationDataset
from transmamba.data.llava import llava_cot_samples as llava_cot_samples
from transmamba.data.llava import llava_samples as llava_samples
from transmamba.data.llava import read_image as read_image
from transmamba.data.llava import reasoning_stages as reasoning_stages
from transmamba.data.lmms_eval import Answerer as Answerer
from transmamba.data.lmms_eval import lmms_model as lmms_model
from transmamba.data.ranking import Ranking as Ranking
from transmamba.data.ranking import RetrievalScores as RetrievalScores
from transmamba.data.ranking import retrieval_scores as retrieval_scores
from transmamba.data.retrieval import RetrievalDataset as RetrievalDataset
from transmamba.data.retrieval import VideoCaptions as VideoCaptions
from transmamba.data.retrieval import didemo as didemo
from transmamba.data.retrieval import msr_vtt as msr_vtt
from transmamba.data.video import normalise as normalise
from transmamba.data.video import read_frames as read_frames
