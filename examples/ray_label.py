"""Label folders, WebDataset shards or parquet files, on one machine or a cluster, with Ray Data.

    python ray_label.py shards/ --output labels/ --words cat dog --workers 8 --gpus 1
    python ray_label.py photos/ --output labels/ --words cat dog --workers 0  # no Ray, one process

SOURCE is a folder: of `*.tar` (WebDataset), of `*.parquet` with a column of pictures, or of
pictures, in chunks of `--chunk`. Each shard, or chunk, becomes one parquet file: key, height,
width, error and COCO annotations (JSON, compressed run lengths) of each picture, in the shard's
order. It is written to a temporary name and renamed, so it is whole or absent, and a shard that has
its file is not done again. A worker that dies is replaced, and its shard done again. A row depends
on no other row and not on who computes it, so the files are the same bytes that one process writes
with as many `--threads`. The workers read the pictures; only names of shards travel, so
memory stays bounded.

Needs the extra `ray`. Where a cluster is running, Ray finds it by RAY_ADDRESS; SOURCE and output
have to be on a file system that all its machines see.
"""

import argparse
import hashlib
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gem_lite import Labeller

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
ROWS = 64  # pictures in one call of the labeller, and in one row group

Row = dict[str, Any]


def shards(source: Path, chunk: int) -> list[Row]:
    """What is to be done, in order: each with the name of its output, and its files."""
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder; expected one of .tar, .parquet or pictures")
    for ending in (".tar", ".parquet"):
        if files := sorted(source.glob(f"*{ending}")):
            return [{"name": file.stem, "kind": ending, "files": [str(file)]} for file in files]
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in PICTURES)
    if not files:
        raise ValueError(f"no .tar, no .parquet and no pictures in {source}")
    return [
        {"name": f"pictures-{start // chunk:06}", "kind": "", "root": str(source)}
        | {"files": [str(file) for file in files[start : start + chunk]]}
        for start in range(0, len(files), chunk)
    ]


def pictures(shard: Row, column: str) -> Iterator[Row]:
    """The pictures of a shard, encoded, one after the other."""
    first = shard["files"][0]
    if shard["kind"] == ".tar":
        with tarfile.open(first) as archive:
            for member in archive:
                name = Path(member.name)
                if member.isfile() and name.suffix.lower() in PICTURES:
                    yield {
                        "key": str(name.with_suffix("")),
                        "image": archive.extractfile(member).read(),
                    }
    elif shard["kind"] == ".parquet":
        import pyarrow.parquet as parquet

        count = 0
        for batch in parquet.ParquetFile(first).iter_batches(ROWS, columns=[column]):
            for image in batch.column(0).to_pylist():  # bytes, or Hugging Face's {bytes, path}
                yield {"key": str(count), "image": image}
                count += 1
    else:
        for file in shard["files"]:
            yield {
                "key": str(Path(file).relative_to(shard["root"])),
                "image": Path(file).read_bytes(),
            }


class Worker:
    """Labels whole shards; Ray makes one in each of its processes, and again where one died."""

    def __init__(self, labeller: Labeller, output: str, column: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.labeller, self.output, self.column = labeller, Path(output), column

    def __call__(self, batch: Row) -> Row:
        texts = [str(text) for text in batch["shard"]]
        return {"result": [json.dumps(self.label(json.loads(text))) for text in texts]}

    def label(self, shard: Row) -> Row:
        """Write one shard's file. A shard that cannot be read is reported, and leaves no file."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            self.labeller.load()  # once in a process
        except (ValueError, TypeError, OSError) as error:  # so for every shard
            return {"wrong": " ".join(str(error).split())}
        fields = {"key": pa.string(), "height": pa.int32(), "width": pa.int32()}
        schema = pa.schema(fields | {"error": pa.string(), "coco": pa.string()})
        target = self.output / f"{shard['name']}.parquet"
        part = target.with_name(f".{target.name}.{os.getpid()}")
        for left in self.output.glob(f".{target.name}.*"):  # by a worker that was killed
            left.unlink(missing_ok=True)
        count = failed = 0
        try:
            with parquet.ParquetWriter(part, schema, compression="zstd") as writer:
                rows = pictures(shard, self.column)
                while group := list(islice(rows, ROWS)):
                    keys = {"key": [row["key"] for row in group]}
                    columns = self.labeller(keys | {"image": [row["image"] for row in group]})
                    writer.write_table(pa.table(columns, schema=schema))
                    count += len(group)
                    failed += sum(error != "" for error in columns["error"])
            part.replace(target)
        except (OSError, tarfile.TarError, KeyError, pa.ArrowException) as error:
            return {"name": shard["name"], "error": " ".join(str(error).split())}
        finally:
            part.unlink(missing_ok=True)
        return {"name": shard["name"], "error": "", "count": count, "failed": failed}


def results(todo: list[Row], worker: tuple[Any, ...], args: argparse.Namespace) -> Iterator[Row]:
    """A result for each shard, in whatever order they end."""
    if args.workers == 0:
        alone = Worker(*worker)
        yield from map(alone.label, todo)
        return
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    data = ray.data.from_items(
        [{"shard": json.dumps(shard)} for shard in todo], override_num_blocks=len(todo)
    ).map_batches(
        Worker,
        fn_constructor_args=worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(args.workers, len(todo))),
        num_cpus=args.threads if args.gpus == 0 else None,
        num_gpus=args.gpus or None,
    )
    for row in data.iter_rows():
        yield json.loads(row["result"])


def same_work(args: argparse.Namespace, labeller: Labeller, work: list[Row]) -> None:
    """Write down what is done in this folder; raise ValueError where that was something else."""
    names = json.dumps(work).encode()
    settings = {**vars(labeller), "threads": args.threads, "column": args.column}
    text = json.dumps({**settings, "work": hashlib.sha256(names).hexdigest()}, indent=1)
    file = args.output / "settings.json"
    if file.exists() and file.read_text() != text:
        raise ValueError(f"{file} is of other words, settings or pictures; give another --output")
    file.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--words", nargs="+", required=True)
    parser.add_argument("--model", default="ViT-B/16")
    parser.add_argument("--pretrained", help="tag or file; default: the model's first")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32")
    parser.add_argument("--workers", type=int, default=2, help="0 = this process, without Ray")
    parser.add_argument("--gpus", type=float, default=0, help="for each worker")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, in each worker")
    parser.add_argument(
        "--size", type=int, help="short side that the model sees; default: its square"
    )
    parser.add_argument("--chunk", type=int, default=256, help="pictures of a folder in one file")
    parser.add_argument("--column", default="image", help="of parquet files")
    args = parser.parse_args()
    try:
        work = shards(args.source, args.chunk)
        labeller = Labeller(
            args.words,
            model=args.model,
            pretrained=args.pretrained,
            precision=args.precision,
            size=args.size,
            device="cuda" if args.gpus else "cpu",
        )
        args.output.mkdir(parents=True, exist_ok=True)
        same_work(args, labeller, work)
        todo = [each for each in work if not (args.output / f"{each['name']}.parquet").exists()]
        print(f"{len(work)} shards, {len(work) - len(todo)} done before", flush=True)
        broken = 0
        worker = (labeller, str(args.output.resolve()), args.column, args.threads)
        for result in results(todo, worker, args) if todo else ():
            if "wrong" in result:
                raise ValueError(result["wrong"])
            broken += bool(result["error"] or result["failed"])
            said = result["error"] or f"{result['count']} pictures, {result['failed']} failed"
            print(f"{result['name']}: {said}", flush=True)
        return 1 if broken else 0
    except (ValueError, TypeError, OSError) as error:
        print(f"ray_label: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
