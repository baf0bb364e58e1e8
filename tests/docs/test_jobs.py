"""Jobs from the outside, as short as they should be: two recipes, the code of pages, and a fine-tuning."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch

from transmamba import data, distill, models, transfer

DOCS = Path(__file__).parents[2] / "docs"
SIZE = {"num_classes": 5, "dim": 12, "depth": 2}


def own_lines(code):
    """Count the lines that do something: no imports, docstrings, comments or empty ones."""
    tree, others = ast.parse(code), set()
    for node in ast.walk(tree):
        said = [node] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            said.append(node.body[0])
        others |= {number for part in said for number in range(part.lineno, part.end_lineno + 1)}
    lines = enumerate(code.splitlines(), 1)
    return [line for number, line in lines if number not in others and line.strip() and line.strip()[0] != "#"]


@pytest.fixture
def recipe(monkeypatch):
    def load(name):
        monkeypatch.syspath_prepend(str(DOCS / "recipes"))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return __import__(name)

    return load


def changed(before, after):
    return [key for key, value in after.items() if not torch.equal(value, before[key])]


def test_a_vit_of_hugging_face_into_vim(recipe, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=5)
    teacher, student = transformers.ViTForImageClassification(config), models.Vim(16, 4, **SIZE)
    frozen = {key: value.clone() for key, value in teacher.state_dict().items()}
    rows = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 5} for i in range(6)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=2, report_to="none", use_cpu=True, save_steps=3,
        dataloader_pin_memory=False, disable_tqdm=True, learning_rate=1e-3,
    )  # fmt: skip
    trainer = recipe("vit_to_vim").into_vim(teacher, student, rows, arguments)
    assert torch.equal(student.norm.weight, torch.ones(12))  # inherited from a new ViT
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    assert not changed(frozen, teacher.state_dict()) and not any("teacher" in key for key in before)
    after = trainer.model.state_dict()
    assert {"student.head.weight", "bridge.0.calibrators.0.mlp.0.weight"} & set(changed(before, after))
    assert (tmp_path / "checkpoint-3" / "model.safetensors").exists()
    # the loss compares like with like: features that are the teacher's own have the cosine 1
    module = trainer.model
    out = module(torch.stack([row["pixel_values"] for row in rows[:2]]), torch.tensor([0, 1]))
    torch.testing.assert_close(out["logits"], student(torch.stack([row["pixel_values"] for row in rows[:2]])))


def test_a_deit_into_vmamba_resumes_bit_for_bit(recipe, tmp_path):
    train = recipe("deit_to_vmamba").train

    def batches(step):
        generator = torch.Generator().manual_seed(step)
        for _ in range(2):
            yield torch.randn(2, 3, 32, 32, generator=generator), torch.randint(5, (2,), generator=generator)

    def begin():
        torch.manual_seed(0)
        teacher = models.ViT(32, 8, dim=24, depth=2, heads=3, num_classes=5, distilled=True)
        return teacher, models.vmamba_v2((8, 12), (1, 2), num_classes=5, drop_path=0.2)

    straight = train(*begin(), batches, 3, tmp_path / "straight.pt")
    train(*begin(), batches, 1, tmp_path / "resumed.pt")
    resumed = train(*begin(), batches, 3, tmp_path / "resumed.pt")
    assert not changed(straight.state_dict(), resumed.state_dict())
    assert changed(begin()[1].state_dict(), resumed.state_dict())


def test_a_retriever_of_videos_is_fine_tuned():
    torch.manual_seed(0)
    frames = models.VideoMamba(16, 8, num_frames=2, dim=12, depth=1, num_classes=0)
    texts = models.PooledText(models.MambaEncoder(50, 12, depth=1, max_length=6), 12, 8)
    model = models.VideoRetriever(texts, models.MambaFrames(frames, 8))
    ids, clips, video = torch.randint(50, (6, 6)), torch.randn(6, 3, 2, 16, 16), torch.arange(6)
    optimizer = torch.optim.AdamW(transfer.param_groups(model, [], lr=1e-2))
    contrast = distill.ContrastiveLoss()
    before = data.retrieval_scores(model(ids, clips), video)
    for _ in range(30):
        optimizer.zero_grad()
        contrast(model(ids, clips)).backward()
        optimizer.step()
    after = data.retrieval_scores(model(ids, clips), video)
    assert after.text_to_video.recall_at_1 == 100 > before.text_to_video.recall_at_1  # six captions are learnt by heart


def test_a_denoiser_learns():
    torch.manual_seed(0)
    code = block(DOCS / "concepts" / "flow.md", "class Denoiser")
    assert len(own_lines(code)) <= 13
    names = {"torch": torch, "models": models}
    exec(code, names)
    model, clean = names["denoiser"], torch.rand(16, 3, 8, 8)
    optimizer = torch.optim.AdamW(transfer.param_groups(model, [], lr=3e-3))
    losses = []
    for _ in range(40):
        time, noise = torch.rand(16), torch.randn_like(clean)
        share = time[:, None, None, None]
        loss = torch.nn.functional.mse_loss(model((1 - share) * clean + share * noise, time), noise - clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def block(page, word):
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) if word in code)
    return code


def test_jobs_are_short():
    lines = {name: len(own_lines((DOCS / "recipes" / f"{name}.py").read_text())) for name in RECIPES}
    assert {name: count for name, count in lines.items() if count > RECIPES[name]} == {}
    assert len(own_lines(block(DOCS / "primitives" / "cross.md", "torch.export"))) <= 15


RECIPES = {"vit_to_vim": 20, "deit_to_vmamba": 30}
