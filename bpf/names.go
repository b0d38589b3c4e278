// SPDX-License-Identifier: Apache-2.0

package bpf

// The names by which the rest of Cairn knows the generated types.
type (
	Ip16        = uplinkIp16
	Cfg         = uplinkCfg
	Meta        = uplinkMeta
	Vip4Key     = uplinkVip4Key
	Vip6Key     = uplinkVip6Key
	Svc         = uplinkSvc
	Backend     = uplinkBackend
	Nexthop     = uplinkNexthop
	Stat        = uplinkStat
	StatPage    = uplinkStatPage
	ConnStat    = uplinkConnStat
	Latency     = uplinkLatency
	Vtep        = uplinkVtep
	Refusals    = uplinkRefusals
	Reach       = uplinkReach
	VipNodes    = uplinkVipNodes
	VipFragKey  = uplinkVipFragKey
	VipFrag     = uplinkVipFrag
	QuicKey     = uplinkQuicKey
	VipPace     = uplinkVipPace
	VtepError   = uplinkVtepError
	LocalKey    = uplinkLocalKey
	Local       = uplinkLocal
	FdbKey      = uplinkFdbKey
	Station     = uplinkStation
	NeighKey    = uplinkNeighKey
	Neigh       = uplinkNeigh
	Bum         = uplinkBum
	ListenerKey = uplinkListenerKey
	Pace        = uplinkPace
	Punt        = uplinkPunt
	PortCfg     = uplinkPortCfg
	AddrKey     = uplinkAddrKey
	AllowKey    = uplinkAllowKey
	PrefixKey   = uplinkPrefixKey
	MemberKey   = uplinkMemberKey
	CidrKey     = uplinkCidrKey
	BmKey       = uplinkBmKey
	BoundsKey   = uplinkBoundsKey
	Bounds      = uplinkBounds
	Bitmap      = uplinkBitmap
	Cut         = uplinkCut
	Inquiry     = uplinkInquiry
	RulesKey    = uplinkRulesKey
	Rules       = uplinkRules
	RuleStat    = uplinkRuleStat
	CtKey       = uplinkCtKey
	Ct          = uplinkCt
	Frag        = uplinkFrag
	PortStat    = uplinkPortStat
	Event       = uplinkEvent
	EventStat   = uplinkEventStat
	Watch       = uplinkWatch
	Capture     = uplinkCapture
	TraceStep   = uplinkTraceStep
	TraceLog    = uplinkTraceLog
	FragKey     = uplinkFragKey
	Note        = uplinkNote
	Sweep       = portSweep
)

// Values of the fields that maps.h declares as enums.
const (
	SvcSourceHash = uint32(uplinkSvcFlagSVC_SOURCE_HASH)
	SvcPanic      = uint32(uplinkSvcFlagSVC_PANIC)
	SvcRotating   = uint32(uplinkSvcFlagSVC_ROTATING)
	SvcPaced      = uint32(uplinkSvcFlagSVC_PACED)
	SvcSampled    = uint32(uplinkSvcFlagSVC_SAMPLED)
	SvcQuic       = uint32(uplinkSvcFlagSVC_QUIC)

	BackendValid = uint32(uplinkBackendFlagBACKEND_VALID)
	NexthopValid = uint16(uplinkNexthopFlagNEXTHOP_VALID)

	LocalReady    = uint16(uplinkLocalFlagLOCAL_READY)
	LocalDraining = uint16(uplinkLocalFlagLOCAL_DRAINING)

	PortEgressOpen = uint32(uplinkPortFlagPORT_EGRESS_OPEN)
	PortSMTPOpen   = uint32(uplinkPortFlagPORT_SMTP_OPEN)
	PortFirewall   = uint32(uplinkPortFlagPORT_FIREWALL)
	PortStrict     = uint32(uplinkPortFlagPORT_STRICT)
	PortFlowLog    = uint32(uplinkPortFlagPORT_FLOW_LOG)
	PortUnmanaged  = uint32(uplinkPortFlagPORT_UNMANAGED)

	BumSnooping = uint32(uplinkBumFlagBUM_SNOOPING)

	VerdictKeep = uint32(uplinkVerdictFlagVERDICT_KEEP)

	PrefixHost      = uint32(uplinkPrefixFlagPREFIX_HOST)
	PrefixInstances = uint32(uplinkPrefixFlagPREFIX_INSTANCES)

	ScopePublic = uint32(uplinkScopeSCOPE_PUBLIC)

	DirectionIn  = uint32(uplinkDirectionDIRECTION_IN)
	DirectionOut = uint32(uplinkDirectionDIRECTION_OUT)

	CtNew         = uint8(uplinkCtStateCT_NEW)
	CtReplied     = uint8(uplinkCtStateCT_REPLIED)
	CtEstablished = uint8(uplinkCtStateCT_ESTABLISHED)
	CtClosing     = uint8(uplinkCtStateCT_CLOSING)
	CtClosed      = uint8(uplinkCtStateCT_CLOSED)
	CtReset       = uint8(uplinkCtStateCT_RESET)

	CtHost   = uint8(uplinkCtFlagCT_HOST)
	CtFinIn  = uint8(uplinkCtFlagCT_FIN_IN)
	CtFinOut = uint8(uplinkCtFlagCT_FIN_OUT)
	CtAlias  = uint8(uplinkCtFlagCT_ALIAS)
	CtKeep   = uint8(uplinkCtFlagCT_KEEP)
	CtLoose  = uint8(uplinkCtFlagCT_LOOSE)

	// What is known of the two sides of a TCP flow.
	CtEndIn  = uint8(uplinkCtHeardCT_END_IN)
	CtEndOut = uint8(uplinkCtHeardCT_END_OUT)
	CtAckIn  = uint8(uplinkCtHeardCT_ACK_IN)
	CtAckOut = uint8(uplinkCtHeardCT_ACK_OUT)

	// Behind the inner Ethernet header of a reachability question.
	ReachAsk    = uint8(uplinkReachOpREACH_ASK)
	ReachAnswer = uint8(uplinkReachOpREACH_ANSWER)

	EventOpened  = uint8(uplinkEventKindEVENT_OPENED)
	EventClosed  = uint8(uplinkEventKindEVENT_CLOSED)
	EventDenied  = uint8(uplinkEventKindEVENT_DENIED)
	EventDropped = uint8(uplinkEventKindEVENT_DROPPED)
	EventSampled = uint8(uplinkEventKindEVENT_SAMPLED)

	EventForLog    = uint8(uplinkEventAudienceEVENT_FOR_LOG)
	EventForWatch  = uint8(uplinkEventAudienceEVENT_FOR_WATCH)
	EventForSample = uint8(uplinkEventAudienceEVENT_FOR_SAMPLE)

	NotePresent = uint32(uplinkNoteFlagNOTE_PRESENT)
)

const (
	// LBVNI is the VNI of load-balanced packets between hosts.
	LBVNI = 0xFFFFFE
	// ReachEtherType marks a question, and its answer, whether a host is reached.
	ReachEtherType = 0x88b5
	// BumPorts and BumHosts are the room for ports and hosts in one Bum record.
	BumPorts = 256
	BumHosts = 512
	// PuntMax is the largest frame that the agent is asked to answer.
	PuntMax = 1024
	// LatencyBuckets are the buckets of a Latency.
	LatencyBuckets = 25
	// CutsMax is the room for cuts in one Bounds record.
	CutsMax = 64
	// RulesMax is the room for rules in a Bitmap.
	RulesMax = 1024
	// CaptureMax is how much of a frame is captured at most, TraceSteps how many
	// steps of a twin are kept.
	CaptureMax = 1536
	TraceSteps = 48
	// AnyProtocol is the protocol of the Bounds for what no rule names.
	AnyProtocol = 0
	// Schema is the version of the layout of all maps: the folder of pins is
	// called after it.
	Schema = 1
	// CtQuota is how many confirmed flows a port may have if nobody says
	// otherwise, CtNewMax how many others.
	CtQuota  = 8192
	CtNewMax = 1024
	// GuardMark is the skb mark without which no frame enters a port; a
	// socket that sends to a port itself sets it with SO_MARK.
	GuardMark = 0xCA190001
)

// StatsPerPage is how many backends share a value of backend_stat.
const StatsPerPage = uint32(len(StatPage{}.Of))
