"""Each field of vLLM's configuration has a decision whether the namespace holds the field.

A new version of vLLM brings new fields. A field that changes the KV of given tokens must be in the
namespace or be refused, or two servers would exchange wrong KV. The tests fail for a field that the
table below does not have. Fields of all supported versions are in the table, and of 0.33.
"""

from __future__ import annotations

import dataclasses

import pytest
import vllm.config

# In the namespace (identity/namespace.py), or in the digest of the model's files.
HELD = "held"
# Refused where it would change the KV (engine/supported_models.py, connector/requirements.py).
REFUSED = "refused"
# Only for layers or models whose KV cache is refused.
REFUSED_LAYERS = "of refused layers"
# Chooses among kernels or code that compute the same with other rounding errors.
ROUNDING = "rounding"
# Changes how many guesses of a draft model are accepted, and no answer.
GUESSES = "guesses"
# Where and when something is computed, what is returned, what is logged.
NO_EFFECT = "no effect"

DECISIONS: dict[str, dict[str, str]] = {
    "ModelConfig": {
        HELD: """model dtype hf_config hf_text_config hf_config_path hf_overrides revision
            max_model_len multimodal_config quantization quantization_config config_format
            disable_sliding_window word_embeddings_untied_by_checkpoint model_weights""",
        REFUSED: "enable_prompt_embeds pooler_config",
        ROUNDING: """model_impl model_class_overrides code_revision disable_cascade_attn
            enforce_eager override_attention_dtype""",
        NO_EFFECT: """runner convert tokenizer tokenizer_mode tokenizer_revision trust_remote_code
            seed is_submodel_config allowed_local_media_path allowed_media_domains
            spec_target_max_model_len allow_deprecated_quantization return_sampling_mask
            max_logprobs logprobs_mode use_fp64_gumbel enable_trace_replay skip_tokenizer_init
            served_model_name hf_token generation_config override_generation_config
            enable_sleep_mode sleep_preserve_parameter_names sleep_mode_backend
            sleep_mode_offload_cudagraph enable_nccl_comm_suspend enable_cumem_allocator
            logits_processors io_processor_plugin renderer_num_workers
            enable_return_routed_experts""",
    },
    "MultiModalConfig": {
        HELD: """media_io_kwargs mm_processor_kwargs mm_device_do_normalize mm_encoder_tp_mode
            mm_encoder_attn_backend""",
        REFUSED: """mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path
            mm_encoder_fp8_scale_save_margin""",
        # Prompts with video are computed.
        REFUSED_LAYERS: "video_pruning_rate video_pruning_method",
        NO_EFFECT: """language_model_only limit_per_prompt enable_mm_embeds mm_processor_cache_gb
            mm_processor_cache_type mm_hasher_algorithm mm_shm_cache_max_object_size_mb
            mm_encoder_only interleave_mm_strings skip_mm_profiling mm_tensor_ipc
            mm_ipc_gpu_memory_gb allow_missing_mm_embeddings""",
    },
    "CacheConfig": {
        HELD: "block_size cache_dtype kv_cache_dtype_skip_layers sliding_window",
        REFUSED: "is_attention_free kv_offloading_size kv_offloading_backend calculate_kv_scales",
        REFUSED_LAYERS: """mamba_page_size_padded mamba_block_size mamba_cache_dtype
            mamba_ssm_cache_dtype mamba_cache_mode enable_mamba_shared_prefix_checkpoint
            replayssm_buffer_len use_replayssm use_kda_recoverssm kv_sharing_fast_prefill
            swa_bounded_replay skip_page_size_padded user_specified_mamba_block_size""",
        # kv_cache_layout: LMCache's kernels store tokens in one order whatever the layout is, and
        # a CPU has one layout.
        NO_EFFECT: """kv_cache_layout user_specified_block_size prefix_match_unit
            gpu_memory_utilization num_gpu_blocks_override enable_prefix_caching
            prefix_caching_hash_algo prefix_cache_retention_interval num_gpu_blocks num_cpu_blocks
            effective_attention_block_size kv_cache_size_tokens kv_cache_max_concurrency
            hash_block_size cache_hit_alignment_tokens kv_cache_memory_bytes
            simple_cpu_offload_num_blocks""",
    },
    "ParallelConfig": {
        HELD: "pipeline_parallel_size tensor_parallel_size world_size",
        REFUSED: """prefill_context_parallel_size decode_context_parallel_size
            dcp_kv_cache_interleave_size dcp_comm_backend dcp_q_replicate
            cp_kv_cache_interleave_size""",
        ROUNDING: """enable_expert_parallel enable_hc_sp enable_batch_sharded_sampling
            all2all_backend disable_custom_all_reduce enable_dbo ubatch_size
            dbo_decode_token_threshold dbo_prefill_token_threshold worker_cls worker_extension_cls
            sd_worker_cls""",
        NO_EFFECT: """data_parallel_size data_parallel_size_local data_parallel_rank
            data_parallel_rank_local data_parallel_master_ip data_parallel_rpc_port dp_sync_interval
            data_parallel_master_port data_parallel_backend data_parallel_external_lb
            data_parallel_hybrid_lb data_parallel_index is_moe_model enable_ep_weight_filter
            enable_eplb eplb_config expert_placement_strategy max_parallel_loading_workers
            enable_shm_tensor_arena enable_elastic_ep elastic_ep_max_dp_size
            disable_nccl_for_dp_synchronization ray_workers_use_nsight ray_runtime_env
            placement_group distributed_executor_backend master_addr master_port node_rank nnodes
            numa_bind numa_bind_nodes numa_bind_cpus assigned_physical_gpu_ids
            distributed_timeout_seconds cpu_distributed_timeout_seconds rank
            enable_fault_tolerance fault_tolerance_config""",
    },
    "AttentionConfig": {
        REFUSED: "use_non_causal",
        REFUSED_LAYERS: """minimax_m3_msa_decode_backend indexer_kv_dtype indexer_sparse_logits
            hisparse_config sparse_mla_force_mqa sparse_mla_prefill_workspace_factor
            use_fp4_indexer_cache indexer_tp_shard_min_rows minimax_m3_indexer_cp
            tq_max_kv_splits_for_cuda_graph""",
        ROUNDING: """backend backend_per_kind flash_attn_version
            flash_attn_max_num_splits_for_cuda_graph tokenspeed_mla_min_split_kv
            use_trtllm_attention disable_flashinfer_q_quantization mla_prefill_backend
            use_prefill_query_quantization use_prefill_decode_attention trtllm_ragged_backend
            flex_attn_block_m flex_attn_block_n flex_attn_q_block_size flex_attn_kv_block_size""",
    },
    "KernelConfig": {
        ROUNDING: """ir_op_priority moe_backend linear_backend linear_backend_per_quant
            enable_bf16x3_router_gemm monokernel enable_rocm_segmented_attn_autotune""",
        REFUSED_LAYERS: "sparse_indexer_topk_backend",
        NO_EFFECT: "enable_flashinfer_autotune enable_cutedsl_warmup enable_jit_warmup",
    },
    "LoRAConfig": {
        # The adapters themselves are in the keys (connector/isolation.py).
        HELD: "lora_dtype target_modules enable_moe_shared_loras",
        REFUSED: "default_mm_loras enable_tower_connector_lora",
        ROUNDING: "fully_sharded_loras specialize_active_lora enable_mixed_moe_lora_format",
        NO_EFFECT: "max_lora_rank max_loras max_cpu_loras max_lora_cls_labels",
    },
    "SpeculativeConfig": {
        HELD: "model method",
        GUESSES: """enforce_eager num_speculative_tokens draft_tensor_parallel_size
            tensor_parallel_size quantization moe_backend attention_backend max_model_len revision
            code_revision index_share_for_mtp_iteration disable_padded_drafter_batch
            disable_eagle_block_drop use_local_argmax_reduction use_heterogeneous_vocab
            prompt_lookup_max prompt_lookup_min parallel_drafting target_model_config
            target_parallel_config num_speculative_tokens_per_batch_size draft_model_config
            draft_parallel_config suffix_decoding_max_tree_depth
            suffix_decoding_max_cached_requests suffix_decoding_max_spec_factor
            suffix_decoding_min_token_prob draft_load_config rejection_sample_method
            synthetic_acceptance_rates synthetic_acceptance_length enable_adaptive_verification
            draft_sample_method dspark_draft_topk disable_lookahead_block_hashes
            draft_lm_head_quantization fly_entropy_threshold fly_entropy_top_k fly_window_size
            xpress_topc""",
        # Layers of two data types are more than one kind of KV cache.
        REFUSED: "kv_cache_dtype",
    },
    "VllmConfig": {
        # Their fields have tables of their own, but for device_config and load_config.
        HELD: """model_config cache_config parallel_config attention_config kernel_config
            lora_config speculative_config device_config load_config quant_config""",
        REFUSED: "diffusion_config ec_transfer_config ec_manager_config",
        REFUSED_LAYERS: "mamba_config",
        ROUNDING: "compilation_config optimization_level performance_mode additional_config",
        NO_EFFECT: """scheduler_config offload_config aux_output_config engram_config
            watermark_config structured_outputs_config observability_config logging_config
            profiler_config kv_transfer_config kv_events_config reasoning_config instance_id
            weight_transfer_config shutdown_timeout watchdog_config""",
    },
}


def undecided(section: str, names: set[str]) -> set[str]:
    """The fields without a decision. A leading underscore marks what vLLM keeps for itself."""
    decided = {name for names in DECISIONS[section].values() for name in names.split()}
    return {name for name in names if not name.startswith("_")} - decided


@pytest.mark.parametrize("section", DECISIONS)
def test_each_field_has_a_decision(section: str) -> None:
    fields = dataclasses.fields(getattr(vllm.config, section))
    assert undecided(section, {field.name for field in fields}) == set()


@pytest.mark.parametrize("section", DECISIONS)
def test_each_field_has_one_decision(section: str) -> None:
    names = [name for names in DECISIONS[section].values() for name in names.split()]
    assert sorted(names) == sorted(set(names))


def test_a_new_field_has_no_decision() -> None:
    assert undecided("CacheConfig", {"block_size", "_private", "new"}) == {"new"}
