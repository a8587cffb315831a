"""Tokenizers and chat templates that ours are compared with: texts.py FOLDER

Trains small tokenizers of each kind that pretrained models come with, and writes for each NAME/tokenizer.json and
NAME/cases.json: awkward texts with what the `tokenizers` package makes of them. chat.json has conversations as
transformers' apply_chat_template writes them. Some more folders have roles.json, the ids of their special tokens.
"""

import inspect
import json
import sys
from pathlib import Path

import transformers as hf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "", " ", "  ", "\n", "\t\t", "a", " a", "a ", "  two  spaces  ", "Hello, world!", "don't can't I'll YOU'RE we'Ve 'tis",
    "line\none\r\nline two\n\n\nline five", "tab\tseparated\tvalues", "3.14159 1,000,000 1984 007 ½ ² Ⅷ ١٢٣", "CamelCaseAndsnake_case",
    "naïve café résumé Ångström", "nai\u0308ve cafe\u0301 decomposed", "İstanbul ıI ß ſ ﬁ ﬂ", "日本語のテキスト 中文字符 한국어 조합",
    "\u1112\u1161\u11ab jamo", "العربية שלום हिन्दी ไทย", "emoji 😀😃 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ☺️", "zero\u200bwidth\u200djoin \ufeffbom \u00adsoft",
    "nbsp\u00a0thin\u2009em\u2003ideographic\u3000space", "\u202eright-to-left\u202c", "control \x01\x02 bell\x07 del\x7f null-ish",
    "math ∑∫√ 𝒜𝓑 𝟙 x²+y²", "quotes “curly” ‘single’ «guillemets» …", "dash – — ― - −", "http://example.com/a?b=c&d=%20#frag",
    "def f(x):\n    return x**2  # comment\n", "{\"json\": [1, 2, null]}", "<|endoftext|>", "before <|im_start|>user after<|im_end|>\n",
    "<s>not</s> special <pad> [CLS] [MASK] here", "<|im_start|><|im_start|> <|im_start|>", "a" * 120, "word " * 30, "!!!???...---", "\u2581lower block \u2581\u2581",
    "Ġ byte-level letters Ċ ĉ", "\U0010ffff\ue000 private", "mixed日本english한국123", "e\u0301\u0301\u0301 stacked", "THE QUICK BROWN FOX", "x\u0000y",
    "  indented\n\t  mixed \n \n", "end with newline\n", "ends with spaces   ", "1st 2nd 3rd 10th 1990s", "$100.00 €5 £3 ¥200", "@user #tag user@mail.org",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What the pieces are counted on: English, code, and some of the texts.
CORPUS = [inspect.getsource(inspect), inspect.getsource(json.decoder)] + TEXTS[10:35]


def byte_level(splitting, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = splitting
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def gpt2():
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def smollm():
    return byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    )


def llama3():
    splitting = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer = byte_level(splitting, ignore_merges=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", pair="<|endoftext|> $A <|endoftext|>:1 $B:1", special_tokens=[("<|endoftext|>", 0)]
    )
    return tokenizer


def llama2():
    """As LLaMA's and Vicuna's, which came from SentencePiece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=specials, show_progress=False, max_token_length=12)
    # Pieces do not cross words: SentencePiece's trainer cuts at the block, the file has no pre-tokenizer.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    state["pre_tokenizer"] = None
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def bert():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=900, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


TEMPLATES = {
    "chatml": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "vicuna": "{%- set ns = namespace(turns=0) -%}\n{%- for message in messages %}\n    {%- if message.role == 'system' %}\n        {{- message.content | trim }} {% elif message.role == 'user' %}\n        {%- set ns.turns = ns.turns + 1 %}USER: {{ message.content }} {% else %}\n        {{- 'ASSISTANT: ' ~ message.content ~ eos_token }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}ASSISTANT:{% endif %}{# turns: {{ ns.turns }} #}",
    "tools": "{%- if tools %}{{- 'Tools: ' }}{%- for tool in tools %}{{- tool | tojson }}{%- if not loop.last %}, {% endif %}{%- endfor %}{{- '\n' }}{%- endif %}{%- for m in messages if m.role in ['user', 'assistant'] %}{{- m.role | upper }}{{ ': ' }}{%- if m.content is string %}{{- m.content }}{%- else %}{%- for part in m.content %}{%- if part.type == 'image' %}<image>{%- else %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}\n{% endfor %}",
}
TURNS = [
    [{"role": "user", "content": "Name a colour."}],
    [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "What moves?"}],
    [{"role": "user", "content": "  One?  "}, {"role": "assistant", "content": "Two.\n"}, {"role": "user", "content": "Three — \"quoted\" <|im_end|> 日本"}],
    [{"role": "assistant", "content": "I begin."}, {"role": "user", "content": "No."}],
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]}],
]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks é", "parameters": {"type": "object", "properties": {}}}}]


def chats(tokenizer):
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    for name, template in TEMPLATES.items():
        # Contents of several parts are for templates that read parts.
        for messages in TURNS if name == "tools" else TURNS[:-1]:
            for prompt in (False, True):
                case = dict(name=name, template=template, messages=messages, addGenerationPrompt=prompt)
                if name == "tools":
                    case["tools"] = TOOLS
                try:
                    case["text"] = fast.apply_chat_template(
                        messages, chat_template=template, tokenize=False, add_generation_prompt=prompt, tools=case.get("tools")
                    )
                except Exception as error:  # the template refuses the conversation
                    case["error"] = str(error)
                yield case


ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
# Folders whose tokenizer_config.json does not say which tokens are special, as released ones are.
UNSAID = {
    "bert-unsaid": ("bert", {"do_lower_case": True, "model_max_length": 512}, None),
    "llama2-map": ("llama2", {"tokenizer_class": "PreTrainedTokenizerFast"}, {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<unk>"}),
}


def roles(folder, tokenizer, config, special):
    """Ids of special tokens as AutoTokenizer finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if special is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    read = hf.AutoTokenizer.from_pretrained(folder)
    (folder / "roles.json").write_text(json.dumps({role: getattr(read, f"{role}_token_id") for role in ROLES}))


def main(folder):
    made = {make.__name__: make() for make in (gpt2, smollm, llama3, llama2, bert)}
    for name, tokenizer in made.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        tokenizer.add_tokens([AddedToken("<frame>", normalized=False), AddedToken("<clip>", lstrip=True, rstrip=True, normalized=False)])
        tokenizer.save(str(folder / name / "tokenizer.json"))
        texts = TEXTS + ["x<frame>y <frame> z", "x <clip> y<clip>z  <clip>  "]
        cases = []
        for text in texts:
            whole, bare = tokenizer.encode(text).ids, tokenizer.encode(text, add_special_tokens=False).ids
            cases.append(
                dict(text=text, ids=whole, bare=bare, decoded=tokenizer.decode(whole), all=tokenizer.decode(whole, skip_special_tokens=False))
            )
        (folder / name / "cases.json").write_text(json.dumps(cases))
    for name, (kind, config, special) in UNSAID.items():
        roles(folder / name, made[kind], config, special)
    (folder / "chat.json").write_text(json.dumps(list(chats(made["llama2"]))))


if __name__ == "__main__":
    hf.logging.set_verbosity_error()
    main(Path(sys.argv[1]))
