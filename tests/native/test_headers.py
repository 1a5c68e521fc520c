"""The declarations: current, complete, and of the layouts that were measured on the libraries."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llcuda_ffi import bundles, enums
from llcuda_ffi.errors import AbiMismatch, UnsupportedByBundle
from llcuda_ffi.native.profile import PROFILES, profile

from ..support.child_process import run_child

ROOT = Path(__file__).resolve().parents[2]

# struct → size, then offsets: measured on the libraries, apart from the headers
SAME = {
    "llama_batch": 56,
    "llama_token_data": 12,
    "llama_token_data_array": 32,
    "llama_sampler_chain_params": 1,
    "llama_perf_sampler_data": 16,
    "llama_model_kv_override": 264,
    "llama_model_tensor_buft_override": 16,
    "llama_sampler_seq_config": 16,
    "llama_logit_bias": 8,
    "llama_chat_message": 16,
    "ggml_backend_dev_props": 56,
    "ggml_threadpool_params": 528,
}
NEW = {
    "llama_model_params": (
        80,
        "devices 0 tensor_buft_overrides 8 n_gpu_layers 16 split_mode 20 load_mode 24 lazy_mode 28 main_gpu 32 "
        "tensor_split 40 progress_callback 48 progress_callback_user_data 56 kv_overrides 64 vocab_only 72 "
        "check_tensors 73 use_extra_bufts 74 no_host 75 no_alloc 76 load_mtp 77",
    ),
    "llama_context_params": (
        160,
        "n_ctx 0 n_batch 4 n_ubatch 8 n_seq_max 12 n_rs_seq 16 n_outputs_max 20 n_outputs_max_per_seq 24 "
        "n_threads 28 n_threads_batch 32 ctx_type 36 rope_scaling_type 40 pooling_type 44 attention_type 48 "
        "flash_attn_type 52 rope_freq_base 56 rope_freq_scale 60 yarn_ext_factor 64 yarn_attn_factor 68 "
        "yarn_beta_fast 72 yarn_beta_slow 76 yarn_orig_ctx 80 defrag_thold 84 cb_eval 88 cb_eval_user_data 96 "
        "type_k 104 type_v 108 abort_callback 112 abort_callback_data 120 embeddings 128 offload_kqv 129 "
        "no_perf 130 op_offload 131 swa_full 132 kv_unified 133 samplers 136 n_samplers 144 ctx_other 152",
    ),
    "llama_model_quantize_params": (
        64,
        "nthread 0 ftype 4 output_tensor_type 8 token_embedding_type 12 allow_requantize 16 "
        "quantize_output_tensor 17 only_copy 18 pure 19 keep_split 20 dry_run 21 imatrix 24 kv_overrides 32 "
        "tt_overrides 40 prune_layers 48 max_buf_size 56",
    ),
    "llama_sampler_i": (96, "name 0 accept 8 apply 16 reset 24 clone 32 free 40 copy_state 88"),
}
OLD = {
    "llama_model_params": (
        72,
        "devices 0 tensor_buft_overrides 8 n_gpu_layers 16 split_mode 20 main_gpu 24 tensor_split 32 "
        "progress_callback 40 progress_callback_user_data 48 kv_overrides 56 vocab_only 64 use_mmap 65 "
        "use_direct_io 66 use_mlock 67 check_tensors 68 use_extra_bufts 69 no_host 70 no_alloc 71",
    ),
    "llama_context_params": (
        136,
        "n_ctx 0 n_batch 4 n_ubatch 8 n_seq_max 12 n_threads 16 n_threads_batch 20 rope_scaling_type 24 "
        "pooling_type 28 attention_type 32 flash_attn_type 36 defrag_thold 68 cb_eval 72 type_k 88 "
        "abort_callback 96 embeddings 112 samplers 120 n_samplers 128",
    ),
    "llama_model_quantize_params": (56, "nthread 0 ftype 4 keep_split 20 imatrix 24 prune_layers 48"),
    "llama_sampler_i": (80, "name 0 accept 8 apply 16 reset 24 clone 32 free 40 backend_set_input 72"),
}
# moe_cache_size moves all behind it by 8 bytes
BEFORE, BEHIND = NEW["llama_context_params"][1].split(" abort_callback ", 1)
MOVED = re.sub(r" (\d+)", lambda found: f" {int(found[1]) + 8}", f"abort_callback {BEHIND}")
NEWER = {**NEW, "llama_context_params": (168, f"{BEFORE} moe_cache_size 112 {MOVED}")}
LAYOUTS = {"b7698": OLD, "v0.5.0": NEW, "b11227": NEW, "v0.6.0": NEWER, "b11669": NEWER}
BUNDLES = ["v0.5.0-cpu", "b7698-cpu", "v0.6.0-cpu", "b11669-cpu"]


def test_generated_files_are_what_the_headers_give() -> None:
    """The committed modules and enums are current: the build script's own check, which CI runs too."""
    done = subprocess.run(
        [sys.executable, ROOT / "build_ffi.py", "--check"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_partial_declaration_and_no_import_of_the_parser() -> None:
    """'...' is in no header (ABI mode would accept a wrong size), and a module loads without pycparser."""
    assert not [path.name for path in (ROOT / "headers").glob("*.h") if "..." in path.read_text()]
    run_child(
        """
        import sys
        from llcuda_ffi.native.profile import PROFILES
        assert all(p.ffi for p in PROFILES.values())
        assert "pycparser" not in sys.modules
        """
    )


@pytest.mark.parametrize("name", PROFILES)
def test_layouts(name: str) -> None:
    """Every struct that goes by value, or lies in an array, has the measured size and offsets."""
    ffi = profile(name).ffi
    for struct, size in SAME.items():
        assert ffi.sizeof(f"struct {struct}") == size, struct
    assert ffi.sizeof("struct llama_perf_context_data") == (56 if name == "b11669" else 48)
    for struct, (size, text) in LAYOUTS[name].items():
        assert ffi.sizeof(f"struct {struct}") == size, struct
        found = dict(ffi.typeof(f"struct {struct}").fields)
        for field, offset in re.findall(r"(\w+) (\d+)", text):
            assert found[field].offset == int(offset), f"{struct}.{field}"


def test_layout_tables_name_every_field() -> None:
    """The two structs that a user fills have no field that the table above leaves out."""
    for name in ("v0.5.0", "b11227", "v0.6.0", "b11669"):
        for struct in ("llama_model_params", "llama_context_params", "llama_model_quantize_params"):
            fields = [field for field, _ in profile(name).ffi.typeof(f"struct {struct}").fields]
            assert fields == [field for field, _ in re.findall(r"(\w+) (\d+)", LAYOUTS[name][struct][1])]


@pytest.mark.parametrize("pin", BUNDLES)
def test_every_declared_function_is_in_the_library(pin: str) -> None:
    """A declaration promises a function: libllama, or a library that it needs, exports it under each profile."""
    bundles.ensure(pin, progress=False)
    out = run_child(
        """
        import sys
        from llcuda_ffi.bundles import ensure
        from llcuda_ffi.native import mtmd
        from llcuda_ffi.native.load import load
        library = load(ensure(sys.argv[1]))
        names = dir(library.lib)
        assert len(names) > 300
        seen = mtmd.functions(library) if mtmd.available(library) else None
        for name in names:
            if name.startswith("mtmd_") and seen is None:
                continue  # a library of its own, which not every bundle has
            try:
                getattr(seen if name.startswith("mtmd_") else library.lib, name)
            except AttributeError:
                print(name)
        """,
        pin,
    )
    assert out.split() == []


@pytest.mark.bundle("v0.5.0")
def test_enum_values_are_the_librarys(bundle: bundles.InstalledBundle) -> None:
    """Where the library can name a value, it gives it the name that the enum has, and no member is left out."""
    found = json.loads(
        run_child(
            """
            import json
            from llcuda_ffi import enums
            from llcuda_ffi.native.load import load
            library = load()
            ffi, lib = library.ffi, library.lib
            text = lambda pointer: ffi.string(pointer).decode() if pointer else ""
            out = {
                "GGMLType": [text(lib.ggml_type_name(m)) for m in enums.GGMLType],
                "GGUFType": [text(lib.gguf_type_name(m)) for m in enums.GGUFType],
                "FlashAttnType": [text(lib.llama_flash_attn_type_name(m)) for m in enums.FlashAttnType],
                "LoadMode": [text(lib.llama_load_mode_name(m)) for m in enums.LoadMode],
                "modes": [lib.llama_load_mode_from_str(text(lib.llama_load_mode_name(m)).encode())
                          for m in enums.LoadMode],
                "FType": [text(lib.llama_ftype_name(m)) for m in enums.FType],
                "types": {i: text(lib.ggml_type_name(i)) for i in range(43)},
                "cpu": lib.ggml_backend_dev_type(lib.ggml_backend_dev_by_name(b"CPU")),
                "keys": {m.name: text(lib.llama_model_meta_key_str(m)) for m in enums.ModelMetaKey},
            }
            print(json.dumps(out))
            """
        )
    )
    assert [n.upper() for n in found["GGMLType"]] == [m.name for m in enums.GGMLType]
    gone = ("deprecated", "removed")
    named = [int(i) for i, name in found["types"].items() if name and not any(w in name.lower() for w in gone)]
    assert named == [m.value for m in enums.GGMLType], "a type of the library is missing"
    short = {"UINT8": "u8", "INT8": "i8", "UINT16": "u16", "INT16": "i16", "UINT32": "u32", "INT32": "i32"}
    short |= {"FLOAT32": "f32", "BOOL": "bool", "STRING": "str", "ARRAY": "arr", "UINT64": "u64", "INT64": "i64"}
    assert found["GGUFType"] == [short.get(m.name, "f64") for m in enums.GGUFType]
    assert [n.upper() for n in found["FlashAttnType"]] == [m.name for m in enums.FlashAttnType]
    assert found["modes"] == [m.value for m in enums.LoadMode]
    for member, name in zip(enums.FType, found["FType"], strict=True):
        letters = name.split(" ")[0].upper()
        wanted = {"ALL_F32": "ALL", "IQ3_M": "IQ3_S"}.get(member.name)
        if member is not enums.FType.GUESSED:
            assert letters == wanted or member.name.startswith(letters), (member, name)
    assert found["cpu"] == enums.BackendDevType.CPU
    for name, key in found["keys"].items():
        assert key.split(".")[-1].replace("_", "").startswith(name.split("_")[1].lower()[:4]), (name, key)


def test_has_and_require() -> None:
    """A profile knows its functions, fields and parameters; what it lacks names the profiles that have it."""
    old, new, newest = (profile(name) for name in ("b7698", "v0.5.0", "b11227"))
    assert new.has("llama_set_adapters_lora")
    assert not old.has("llama_set_adapters_lora")
    assert new.has("model_params.load_mode")
    assert not old.has("model_params.load_mode")
    assert old.has("model_params.use_mmap")
    assert new.has("quantize_params.dry_run")
    assert not old.has("quantize_params.dry_run")
    assert old.has("llama_sampler_init_dry.n_ctx_train")
    assert not new.has("llama_sampler_init_dry.n_ctx_train")
    assert newest.has("llama_batch_ext_init")
    assert not new.has("no_such_struct.field")
    new.require("llama_version")
    with pytest.raises(UnsupportedByBundle, match=r"llama_version is not in .*b7698.*v0\.5\.0 and b11227 and v"):
        old.require("llama_version")
    with pytest.raises(UnsupportedByBundle, match="no known bundle has it"):
        new.require("llama_fly")
    with pytest.raises(AbiMismatch, match=r"b9999.*known are b7698"):
        profile("b9999")
