-- How much a shard holds: sessions, items that wait, that run, that have failed.
-- KEYS: sessions by due time, counters, failed items.
local counts = redis.call('HMGET', KEYS[2], 'waiting', 'running')
return {
    redis.call('ZCARD', KEYS[1]), tonumber(counts[1] or 0), tonumber(counts[2] or 0),
    redis.call('ZCARD', KEYS[3])
}
