/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "packet.h"
#include "policy.h"
#include "reach.h"

/*
 * The compiler describes only types that something uses. These pointers use
 * those that Go needs besides the keys and values of the outermost maps; they
 * are constants that no program reads.
 */
const enum reason *const export_reason;
const enum svc_flag *const export_svc_flag;
const enum backend_flag *const export_backend_flag;
const enum nexthop_flag *const export_nexthop_flag;
const enum local_flag *const export_local_flag;
const enum port_flag *const export_port_flag;
const enum prefix_flag *const export_prefix_flag;
const enum verdict_flag *const export_verdict_flag;
const enum scope *const export_scope;
const enum direction *const export_direction;
const enum ct_state *const export_ct_state;
const enum ct_flag *const export_ct_flag;
const enum ct_heard *const export_ct_heard;
const enum reach_op *const export_reach_op;
const enum bum_flag *const export_bum_flag;
const enum note_flag *const export_note_flag;
const enum event_kind *const export_event_kind;
const enum event_audience *const export_event_audience;
const struct event *const export_event;
const struct capture *const export_capture;
const enum trace_stage *const export_trace_stage;
const struct trace_log *const export_trace_log;
const struct punt *const export_punt;
const struct note *const export_note;
const struct ct_key *const export_ct_key;
const struct ct *const export_ct;
const struct inquiry *const export_inquiry;
