"""Tiny folders of tokenizers of transformers, as the repositories of each family have them."""

import json
from pathlib import Path

WORDS = ("a", "photo", "of", "the", "dog", "cat", "grass", "sky", "in", "art", "large", "small")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def siglip(folder: Path, *, pad_token: str = "</s>") -> Path:
    """Write a Unigram of SigLIP's kind: "</s>" ends a text and fills it up; no `<extra_id_0>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in WORDS] + [(letter, -5.0) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return _save(
        folder,
        tokenizer,
        tokenizer_class="T5Tokenizer",
        eos_token="</s>",
        pad_token=pad_token,
        unk_token="<unk>",
        extra_ids=0,
        additional_special_tokens=[],
        legacy=False,
    )


def gemma(folder: Path) -> Path:
    """Write a BPE of SigLIP 2's kind: "<eos>" ends a text, nothing begins it, "<pad>" fills it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(
        models.BPE(*_merged(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]), unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    return _save(
        folder,
        tokenizer,
        tokenizer_class="GemmaTokenizer",
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def bert(folder: Path) -> Path:
    """Write a WordPiece in lower case, as CLIPA's: "[CLS]" text "[SEP]"."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS), "."]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(special)
    return _save(
        folder,
        tokenizer,
        config={"model_type": "bert"},
        tokenizer_class="BertTokenizer",
        do_lower_case=True,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def nllb(folder: Path, languages=("eng_Latn", "deu_Latn", "fra_Latn")) -> Path:
    """Write a BPE with codes of languages, one before each text, and a tiny encoder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary, merges = _merged(special)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([*special, *languages, "<mask>"])
    code = tokenizer.token_to_id("eng_Latn")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="eng_Latn $A </s>", special_tokens=[("eng_Latn", code), ("</s>", 2)]
    )
    encoder = {
        "model_type": "m2m_100",
        "vocab_size": tokenizer.get_vocab_size(),
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 128,
        "pad_token_id": 1,
        "is_encoder_decoder": True,
        "tokenizer_class": "NllbTokenizer",
    }
    return _save(
        folder,
        tokenizer,
        config=encoder,
        tokenizer_class="NllbTokenizer",
        additional_special_tokens=list(languages),
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        src_lang=None,
        tgt_lang=None,
    )


def xlm_roberta(folder: Path) -> Path:
    """Write a Unigram of XLM-R's and XLM-V's kind, "<s>" text "</s>", and a tiny encoder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in WORDS] + [(letter, -5.0) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("<mask>", 0.0)], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return _save(
        folder,
        tokenizer,
        config=_encoder("xlm-roberta", tokenizer.get_vocab_size()),
        tokenizer_class="XLMRobertaTokenizer",
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def roberta(folder: Path) -> Path:
    """Write a BPE of bytes, "<s>" text "</s>", case kept, and a tiny encoder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.add_special_tokens(special)
    return _save(
        folder,
        tokenizer,
        config=_encoder("roberta", tokenizer.get_vocab_size()),
        tokenizer_class="RobertaTokenizer",
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def mt5(folder: Path) -> Path:
    """Write a Unigram of mT5's kind, text "</s>" and `<pad>` after it, and a tiny encoder."""
    siglip(folder, pad_token="<pad>")
    config = {
        "model_type": "mt5",
        "vocab_size": 64,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 32,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
        "pad_token_id": 0,
        "is_encoder_decoder": True,
        "tokenizer_class": "T5Tokenizer",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def sentencepiece(folder: Path) -> Path:
    """Write what mT5's repository has: a model of sentencepiece, and no tokenizer.json."""
    from sentencepiece import SentencePieceTrainer

    lines = [f"a photo of the {word} in the {other}" for word in WORDS for other in WORDS]
    folder.mkdir(parents=True)
    with (folder / "spiece.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=file,
            vocab_size=40,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _encoder(kind: str, size: int) -> dict[str, object]:
    return {
        "model_type": kind,
        "vocab_size": size,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 130,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


def _merged(special):
    """Return a vocabulary of letters and words, and the merges that make these of those."""
    tokens, merges = [*special, "▁", *LETTERS, "."], []
    for word in WORDS:
        made = "▁"
        for letter in word:
            pair, made = (made, letter), made + letter
            if pair not in merges:
                merges.append(pair)
            tokens.append(made)
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, merges


def _save(folder: Path, tokenizer, *, config=None, **settings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {name: value for name, value in settings.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder
