-- Remove a failed item; whether there was one.
-- KEYS: failed items by their ids, failed items. ARGV: id, session.
redis.call('ZREM', KEYS[1], ARGV[1] .. '\0' .. ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[1] .. ':error')
return redis.call('HDEL', KEYS[2], ARGV[1])
