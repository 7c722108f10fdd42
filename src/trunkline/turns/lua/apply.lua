-- Write what calls have changed in one session, unless somebody else has changed it meanwhile.
-- KEYS[1]: what the keys of the session's shard begin with.
-- ARGV: session, version that was loaded or '', new version, document or '' if the session is empty
-- now, when it is due, how many more items wait, how many more run, how many words of changes
-- follow; those words; then 'item' and its id, or 'steps' and their group, of what to return.
-- Returns false if it was changed, -1 if an item that should be tried again is not failed any more,
-- or else the values that were asked for.
local shard, session, document, last = KEYS[1], ARGV[1], ARGV[4], 8 + ARGV[8]
local hash, due, items = shard .. 's:' .. session, shard .. 'due', shard .. 'items'
local failed, graves = shard .. 'failed', shard .. 'failed-items'

if (redis.call('HGET', hash, 'v') or '') ~= ARGV[2] then return false end
local i = 9
while ARGV[i] == 'mark' do
    if redis.call('EXISTS', shard .. 'm:' .. ARGV[i + 1]) == 1 then return false end
    i = i + 4
end
while ARGV[i] == 'revive' do
    if redis.call('HEXISTS', graves, ARGV[i + 1]) == 0 then return -1 end
    i = i + 2
end

-- A server that is full refuses what needs memory, but only as the first write of a script: an
-- accept is refused, and the end of a turn, which begins with what it removes, is not.
i = 9
while ARGV[i] == 'mark' do
    redis.call('SET', shard .. 'm:' .. ARGV[i + 1], ARGV[i + 2], 'PX', ARGV[i + 3])
    i = i + 4
end
while i <= last do
    local what, id = ARGV[i], ARGV[i + 1]
    local member = id .. '\0' .. session
    i = i + 2
    if what == 'add' then
        redis.call('HSET', hash, id, ARGV[i])
        redis.call('ZADD', items, 0, member)
        i = i + 1
    elseif what == 'replace' then
        -- An item is the length of its head in two bytes, the head, and the payload.
        local item = redis.call('HGET', hash, id)
        local head = string.sub(item, 1, 2 + 256 * string.byte(item, 1) + string.byte(item, 2))
        redis.call('HSET', hash, id, head .. ARGV[i])
        i = i + 1
    elseif what == 'claim' then
        redis.call('HSET', shard .. 'c:' .. ARGV[i], id, session)
        i = i + 1
    elseif what == 'step' then
        redis.call('HSET', shard .. 'g:' .. id, 'session', session, ARGV[i], ARGV[i + 1])
        i = i + 2
    elseif what == 'fail' then
        redis.call('HSET', graves, id, redis.call('HGET', hash, id), id .. ':error', ARGV[i])
        redis.call('ZADD', failed, 0, member)
        redis.call('HDEL', hash, id)
        redis.call('ZREM', items, member)
        i = i + 1
    elseif what == 'revive' then
        redis.call('HSET', hash, id, redis.call('HGET', graves, id))
        redis.call('ZADD', items, 0, member)
        redis.call('HDEL', graves, id, id .. ':error')
        redis.call('ZREM', failed, member)
    elseif what == 'remove' then
        redis.call('HDEL', hash, id)
        redis.call('ZREM', items, member)
    elseif what == 'release' then
        redis.call('HDEL', shard .. 'c:' .. ARGV[i], id)
        i = i + 1
    elseif what == 'end' then
        redis.call('DEL', shard .. 'g:' .. id)
    end
end
if document ~= '' then
    redis.call('HSET', hash, 'v', ARGV[3], 'd', document)
    redis.call('ZADD', due, ARGV[5], session)
end
if ARGV[6] ~= '0' then redis.call('HINCRBY', shard .. 'counts', 'waiting', ARGV[6]) end
if ARGV[7] ~= '0' then redis.call('HINCRBY', shard .. 'counts', 'running', ARGV[7]) end
if document == '' then
    redis.call('DEL', hash)
    redis.call('ZREM', due, session)
    if redis.call('EXISTS', due) == 0 then redis.call('DEL', shard .. 'counts') end
end

local found = {}
for j = last + 1, #ARGV, 2 do
    if ARGV[j] == 'item' then
        found[#found + 1] = redis.call('HGET', hash, ARGV[j + 1])
    else
        found[#found + 1] = redis.call('HGETALL', shard .. 'g:' .. ARGV[j + 1])
    end
end
return found
