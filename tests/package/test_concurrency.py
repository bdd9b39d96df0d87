"""One model object in many threads, and memory over many calls."""

import threading
from pathlib import Path

import pytest
import torch
from small import random_images, small_model


def test_eight_threads_get_what_one_gets() -> None:
    """Other prompts, sizes, streams and templates in every call; the text cache is shared."""
    model = small_model()
    jobs = [
        (
            random_images(1, 40 + 8 * (index % 3), 48, seed=index),
            [f"thing {index % 5}", "cat", f"thing {index}"],
            {"return_ori": index % 2 == 1, "templates": ("a {}.", "{}")[: 1 + index % 2]},
        )
        for index in range(40)
    ]
    with torch.no_grad():
        alone = [small_model()(image, words, **options) for image, words, options in jobs]
    together: dict[int, torch.Tensor] = {}
    faults: list[Exception] = []
    barrier = threading.Barrier(8)

    def work(first: int) -> None:
        try:
            barrier.wait()
            for index in range(first, len(jobs), 8):
                image, words, options = jobs[index]
                if index % 7 == 0:
                    model.clear_text_cache()
                with torch.inference_mode() if first % 2 else torch.no_grad():
                    together[index] = model(image, words, **options)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == [] and len(together) == len(jobs)
    for index, expected in enumerate(alone):
        assert float((together[index] - expected).abs().max()) <= 1e-6, index


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="memory as Linux tells it")
def test_memory_stays_flat() -> None:
    """The same measure as benchmarks/soak.py, shorter: 40 calls to warm up, then 160."""
    model = small_model()

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    def call(index: int) -> None:
        with torch.inference_mode():
            model(
                random_images(1, 24 + 8 * (index % 7), 64), [f"thing {index} {k}" for k in range(4)]
            )

    for index in range(40):
        call(index)
    before = resident()
    for index in range(40, 200):
        call(index)
    # 160 calls' maps and features, if they were kept, would be 60 MB; kept embeddings are 0.1 MB.
    assert resident() - before < 12
