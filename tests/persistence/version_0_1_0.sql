-- What trunkline 0.1.0 made of a bot's first minute: its tables and its rows.
CREATE TABLE trunkline_bridge_configs (
	id TEXT NOT NULL, 
	enabled BOOLEAN NOT NULL, 
	document TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE trunkline_ingress_subscriptions (
	bridge_id TEXT NOT NULL, 
	subscription_id TEXT NOT NULL, 
	status TEXT NOT NULL, 
	document TEXT NOT NULL, 
	PRIMARY KEY (bridge_id, subscription_id)
);
CREATE TABLE trunkline_onboarding_flows (
	id TEXT NOT NULL, 
	document TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE trunkline_participants (
	id TEXT NOT NULL, 
	folded_name TEXT, 
	document TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE trunkline_rooms (
	id TEXT NOT NULL, 
	type TEXT NOT NULL, 
	folded_name TEXT, 
	document TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE trunkline_messages (
	id TEXT NOT NULL, 
	room_id TEXT NOT NULL, 
	thread_id TEXT, 
	channel TEXT, 
	bridge_id TEXT, 
	external_id TEXT, 
	inserted_at_us BIGINT NOT NULL, 
	document TEXT NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(room_id) REFERENCES trunkline_rooms (id) ON DELETE CASCADE
);
CREATE TABLE trunkline_participant_external_ids (
	participant_id TEXT NOT NULL, 
	channel TEXT NOT NULL, 
	external_id TEXT NOT NULL, 
	holder INTEGER, 
	PRIMARY KEY (participant_id, channel), 
	CONSTRAINT trunkline_participant_holder UNIQUE (channel, external_id, holder), 
	FOREIGN KEY(participant_id) REFERENCES trunkline_participants (id) ON DELETE CASCADE
);
CREATE TABLE trunkline_room_bindings (
	id TEXT NOT NULL, 
	room_id TEXT NOT NULL, 
	channel TEXT NOT NULL, 
	bridge_id TEXT NOT NULL, 
	external_room_id TEXT NOT NULL, 
	inserted_at_us BIGINT NOT NULL, 
	document TEXT NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT trunkline_room_bindings_once UNIQUE (channel, bridge_id, external_room_id), 
	FOREIGN KEY(room_id) REFERENCES trunkline_rooms (id) ON DELETE CASCADE
);
CREATE TABLE trunkline_routing_policies (
	room_id TEXT NOT NULL, 
	document TEXT NOT NULL, 
	PRIMARY KEY (room_id), 
	FOREIGN KEY(room_id) REFERENCES trunkline_rooms (id) ON DELETE CASCADE
);
CREATE TABLE trunkline_threads (
	id TEXT NOT NULL, 
	room_id TEXT NOT NULL, 
	external_thread_id TEXT, 
	root_message_id TEXT, 
	status TEXT NOT NULL, 
	inserted_at_us BIGINT NOT NULL, 
	document TEXT NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(room_id) REFERENCES trunkline_rooms (id) ON DELETE CASCADE
);
CREATE TABLE trunkline_schema (
	component TEXT NOT NULL, 
	version INTEGER NOT NULL, 
	PRIMARY KEY (component)
);
CREATE INDEX trunkline_messages_by_external_id ON trunkline_messages (channel, bridge_id, external_id, inserted_at_us) WHERE external_id IS NOT NULL;
CREATE INDEX trunkline_messages_by_room ON trunkline_messages (room_id, inserted_at_us, id);
CREATE INDEX trunkline_messages_by_thread ON trunkline_messages (room_id, thread_id, inserted_at_us, id) WHERE thread_id IS NOT NULL;
CREATE INDEX trunkline_room_bindings_by_room ON trunkline_room_bindings (room_id, inserted_at_us, id);
CREATE INDEX trunkline_rooms_by_type ON trunkline_rooms (type, id);
CREATE INDEX trunkline_threads_by_external_id ON trunkline_threads (room_id, external_thread_id);
CREATE INDEX trunkline_threads_by_room ON trunkline_threads (room_id, inserted_at_us, id);
CREATE INDEX trunkline_threads_by_root ON trunkline_threads (room_id, root_message_id);
INSERT INTO "trunkline_bridge_configs" VALUES('bot',FALSE,'{"id":"bot","adapter_module":null,"credentials":{},"opts":{},"enabled":false,"capabilities":[],"delivery_policy":{},"revision":0,"inserted_at":"2026-03-01T12:00:00Z","updated_at":"2026-03-01T12:00:00Z"}');
INSERT INTO "trunkline_ingress_subscriptions" VALUES('bot','s','active','{"bridge_id":"bot","adapter_name":null,"status":"active","external_id":null,"subscription_id":"s","target_url":null,"expires_at":null,"metadata":{},"raw":null}');
INSERT INTO "trunkline_onboarding_flows" VALUES('o','{"onboarding_id":"o","step":1}');
INSERT INTO "trunkline_participants" VALUES('z','ada','{"id":"z","type":"human","identity":{"name":"Ada"},"external_ids":{"telegram":7},"presence":"offline","capabilities":[],"metadata":{}}');
INSERT INTO "trunkline_participants" VALUES('a','ada b','{"id":"a","type":"human","identity":{"name":"Ada B"},"external_ids":{"telegram":7},"presence":"offline","capabilities":[],"metadata":{}}');
INSERT INTO "trunkline_rooms" VALUES('lobby','group','café','{"id":"lobby","type":"group","name":"Café","external_bindings":{"telegram":{"bot":42}},"metadata":{},"inserted_at":"2026-03-01T12:00:00Z"}');
INSERT INTO "trunkline_messages" VALUES('8d1a0e46-f7a8-535a-a0ad-996e058770d6','lobby',NULL,'telegram','bot','1',1795284146809516,'{"id":"8d1a0e46-f7a8-535a-a0ad-996e058770d6","room_id":"lobby","sender_id":"z","role":"user","content":"came in","reply_to_id":null,"external_id":1,"external_reply_to_id":null,"thread_id":null,"external_thread_id":null,"delivery_external_room_id":42,"status":"delivered","reactions":{},"receipts":{},"metadata":{"channel":"telegram","bridge_id":"bot"},"inserted_at":"2026-11-21T18:02:26.809516Z","updated_at":"2026-11-21T18:02:26.809516Z"}');
INSERT INTO "trunkline_messages" VALUES('said','lobby',NULL,'telegram','bot','2',1772366401000000,'{"id":"said","room_id":"lobby","sender_id":null,"role":"user","content":"said","reply_to_id":null,"external_id":2,"external_reply_to_id":null,"thread_id":null,"external_thread_id":null,"delivery_external_room_id":null,"status":"sending","reactions":{},"receipts":{},"metadata":{"channel":"telegram","bridge_id":"bot"},"inserted_at":"2026-03-01T12:00:01Z","updated_at":"2026-03-01T12:00:00Z"}');
INSERT INTO "trunkline_participant_external_ids" VALUES('z','telegram','7',1);
INSERT INTO "trunkline_participant_external_ids" VALUES('a','telegram','7',NULL);
INSERT INTO "trunkline_room_bindings" VALUES('binding','lobby','telegram','bot','42',1772366400000000,'{"id":"binding","room_id":"lobby","channel":"telegram","bridge_id":"bot","external_room_id":42,"direction":"both","enabled":true,"inserted_at":"2026-03-01T12:00:00Z"}');
INSERT INTO "trunkline_routing_policies" VALUES('lobby','{"id":"policy","room_id":"lobby","delivery_mode":"best_effort","failover_policy":"next_available","dedupe_scope":"message_id","fallback_order":[],"metadata":{},"revision":0,"inserted_at":"2026-03-01T12:00:00Z","updated_at":"2026-03-01T12:00:00Z"}');
INSERT INTO "trunkline_threads" VALUES('thread','lobby','5',NULL,'active',1772366400000000,'{"id":"thread","room_id":"lobby","external_thread_id":5,"delivery_external_room_id":null,"root_message_id":null,"root_external_message_id":null,"assigned_agent_id":null,"status":"active","metadata":{},"inserted_at":"2026-03-01T12:00:00Z","updated_at":"2026-03-01T12:00:00Z"}');
INSERT INTO "trunkline_schema" VALUES('persistence',1);
