"""Convert CLIP weights of any known layout into one safetensors file for gem_lite.

    python convert_weights.py --model ViT-B/16 --pretrained openai
    python convert_weights.py --model ViT-B/16 --pretrained mine --source FILE_OR_FOLDER

A thin command line over gem_lite.convert, the same as `gem-lite convert`.
"""

import sys

from gem_lite.tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
