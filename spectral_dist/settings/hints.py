"""Hints for unknown flags: the names that other trainers use, and what they are called here.

Owns the answer to an unknown flag or key. Imports no JAX. Read `hint`.
"""

from collections.abc import Iterable

from spectral_dist.settings.rules import nearest

# Our setting -> its names in other trainers (nanoGPT, Hugging Face, Lightning, Megatron, MaxText,
# torchtitan, levanter), compared without case, hyphens and underscores. Without this table the hint
# would be the nearest spelling, which misleads: for learning_rate it is layer_pattern.
_SAME = {
    "lr": "learning_rate max_lr peak_lr base_lr initial_lr",
    "final_lr_fraction": "min_lr end_lr lr_end final_lr min_lr_ratio"
    " cosine_learning_rate_final_fraction",
    "schedule": "lr_scheduler_type lr_schedule lr_scheduler lr_decay_style decay_type",
    "warmup_steps": "warmup warmup_iters warmup_ratio num_warmup_steps lr_warmup_iters",
    "steps": "max_steps max_iters num_steps train_steps train_iters num_train_steps total_steps"
    " iterations training_steps",
    "accum_steps": "gradient_accumulation_steps grad_accum grad_accum_steps accumulation_steps"
    " accumulate_grad_batches gradient_accumulation",
    "seq_len": "block_size context_length sequence_length max_seq_length max_seq_len max_length"
    " n_ctx context_size max_target_length seq_length",
    "hidden_dim": "n_embd d_model hidden_size embedding_dim embed_dim width model_dim emb_dim",
    "num_layers": "n_layer n_layers num_hidden_layers depth num_decoder_layers",
    "num_kv_heads": "n_kv_heads n_kv_head num_key_value_heads num_query_groups",
    "mlp_dim": "intermediate_size d_ff ffn_dim ffn_hidden_size dim_feedforward",
    "document_mask": "intra_document_masking document_masking reset_attention_mask"
    " reset_position_ids eod_mask_loss cross_document_attention packing_mask",
    "ngrams": "ngram_embeddings hash_ngrams encoder_hash_byte_group_size ngram_sizes",
    "ngram_rows": "ngram_vocab_size encoder_hash_byte_group_vocab hash_table_size",
    "window": "sliding_window window_size attention_window",
    "num_poles": "d_state state_size num_filters num_eigh",
    "conv_width": "d_conv conv_kernel",
    "compute_dtype": "dtype precision bf16 fp16 mixed_precision",
    "remat": "gradient_checkpointing activation_checkpointing activation_checkpoint recompute"
    " remat_policy checkpoint_activations",
    "optimizer.name": "optimizer optim optimizer_type opt",
    "beta1": "adam_beta1 b1",
    "beta2": "adam_beta2 b2",
    "adam_eps": "adam_epsilon eps epsilon",
    "clip_norm": "grad_clip max_grad_norm gradient_clip_val clip_grad gradient_clipping"
    " gradient_clipping_threshold clip_gradient",
    "weight_decay": "wd decay",
    "tokenizer": "tokenizer_name tokenizer_path tokenizer_type",
    "data_paths": "dataset data train_file train_files train_data data_dir data_path dataset_path"
    " dataset_name train_path input",
    "data_weights": "mixture mixture_weights data_mix sampling_weights",
    "validation_fraction": "val_split validation_split eval_split val_fraction",
    "checkpoint_dir": "output_dir out_dir save_dir ckpt_dir output log_dir base_output_directory",
    "run_name": "name exp_name experiment_name job_name run_id",
    "save_every": "save_steps save_interval checkpoint_every checkpoint_interval"
    " every_n_train_steps checkpoint_period save_freq",
    "keep": "save_total_limit save_top_k max_to_keep keep_last",
    "eval_every": "eval_steps eval_interval val_check_interval eval_freq evaluation_interval",
    "eval_windows": "eval_iters eval_batches max_eval_samples limit_val_batches",
    "log_every": "logging_steps log_interval log_every_n_steps log_freq log_period",
    "wandb_mode": "wandb wandb_log report_to use_wandb logger",
    "mesh": "devices num_gpus gpus num_devices n_gpu world_size tensor_parallel_size tp_size fsdp"
    " data_parallel_size tensor_parallelism data_parallelism num_nodes",
    "seed": "random_seed manual_seed",
    "prefetch_steps": "prefetch prefetch_factor prefetch_size",
}
# Their names for what is no setting here -> what to do instead.
_OTHERWISE = {
    "micro_batch_size per_device_train_batch_size train_batch_size global_batch_size"
    " device_batch_size per_device_batch_size": "--batch_size counts the sequences of a micro-batch"
    " over all devices",
    "resume resume_from_checkpoint resume_from load load_checkpoint ckpt_path"
    " auto_resume": "the same command with the same --run_name resumes by itself",
    "epochs num_epochs max_epochs num_train_epochs n_epochs": "a run is --steps long; a step sees"
    " batch_size x accum_steps x seq_len tokens",
    "n_head n_heads num_heads num_attention_heads": "the number of heads is hidden_dim / head_dim:"
    " --head_dim",
    "compile torch_compile": "every step is compiled",
    "dropout attention_dropout resid_dropout hidden_dropout": "there is no dropout",
    "device accelerator backend hardware": "JAX chooses the device; JAX_PLATFORMS=cpu in the"
    " environment keeps to the CPU",
    "num_workers dataloader_num_workers workers": "text is read ahead by a thread:"
    " --prefetch_steps",
}


def _plain(word: str) -> str:
    return word.lower().replace("_", "").replace("-", "")


_ANSWERS = {_plain(w): name for name, words in _SAME.items() for w in words.split()} | {
    _plain(w): answer for words, answer in _OTHERWISE.items() for w in words.split()
}


def hint(word: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return a hint for an unknown name: our name for it, the nearest name, or "".

    Args:
      word: the unknown name, without leading hyphens.
      known: all names that exist.
      prefix: put before our names: "--" for flags.
    """
    answer = _ANSWERS.get(_plain(word))  # first: the nearest spelling is only a guess
    if answer is None:
        return nearest(word, known).replace("did you mean ", f"did you mean {prefix}")
    if answer in _SAME:
        return f"; here it is {prefix}{answer}"
    return f"; {answer}"
