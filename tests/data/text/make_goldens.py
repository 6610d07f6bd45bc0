import json, random, sys
from tokenizers import Tokenizer, AddedToken
from tokenizers.decoders import DecodeStream
random.seed(7)
base=['','a',' ','  ','\n','What is 12*7-5?','<think>\n2*9=18\n</think>\n\n79','Which is larger, 88 or 87?','Sort 47,62,93,3.',"How many q's are in yqrqs?",
 '<｜begin▁of▁sentence｜><｜User｜>What is 88+7?<｜Assistant｜><think>\n8+7=15\n8+0+1=9\n</think>\n\n95<｜end▁of▁sentence｜>',
 '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n','<|endoftext|><|im_start|><|im_end|>','<|im_start|','<think','<<think>>','</think></think>',
 'First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n',"I'LL we've don't they'd 'tis I'M","it'ſ s",
 'e\u0301 A\u030a \u1100\u1161\u11a8 \u0928\u093c \ufb01','caf\u00e9 na\u00efve \u00fc\u00f1\u00ef','\u4f60\u597d\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f\u30ab\u30bf\u30ab\u30ca','\U0001f680\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1f3\U0001f1f4',
 '\u180e \u180ea\u180e\u180e','\u0085x\u00a0y\u2003z\u3000w\u2028\u2029','\t\t\tif x:\n\t\t\t\treturn  1\r\n\r\n   \n  ','1234567890 3.14159 1,000,000 \u0661\u0662\u0663 \u2167 \u00bd \u2460','\ufffd\ufffd','\u0000\u0001\u001f\u007f',
 '#include <vector>\nint main() { return x->y[0] != ~z ? 1 : 0; }','a'*300,' '*100,'ab'*500,'\n'*40,'.'*70]
pool=[0x20,0x20,0xa,0x9]+list(range(0x21,0x7f))*2+list(range(0xa0,0x180))+list(range(0x300,0x315))+list(range(0x391,0x3c9))+list(range(0x410,0x450))+list(range(0x5d0,0x5ea))+list(range(0x904,0x94d))+list(range(0x4e00,0x4e40))+list(range(0xac00,0xac20))+list(range(0x1f600,0x1f620))+[0x200d,0xfe0f,0x2028,0x3000,0x180e]
words=["the ","What"," is","king,"," \n","don't","12","<think>","</think>","<|im_end|>","<｜User｜>","  ","\u0301"]
for i in range(60):
    base.append(''.join(chr(random.choice(pool)) if random.random()<.6 else random.choice(words) for _ in range(random.randint(1,40))))
def row(t,s,with_stream=True):
    e=t.encode(s,add_special_tokens=False); r={'s':s,'ids':e.ids}
    r['ids_with_special']=t.encode(s,add_special_tokens=True).ids
    d=t.decode(e.ids,skip_special_tokens=False)
    if d!=s: r['decoded']=d
    r['decoded_skip_special']=t.decode(e.ids,skip_special_tokens=True)
    if with_stream:
        st=DecodeStream(skip_special_tokens=False); r['stream']=[st.step(t,i) for i in e.ids]
    return r
for n in ('tiny-r1','tiny-shakespeare'):
    t=Tokenizer.from_file(n+'.tokenizer.json')
    with open(n+'.jsonl','w') as f:
        for s in base: f.write(json.dumps(row(t,s,len(s)<200),ensure_ascii=True,separators=(',',':'))+'\n')
# behaviours, normalized and stripping added tokens, digits, prefix space: a small tokenizer changed in one place each
j=json.load(open('tiny-shakespeare.tokenizer.json'))
alpha="What   3 lords-a-leaping, 12.5 kings' <x> <y>  <<x>y> a<x>b  \u00e9<N\u00e9>e\u0301 <Ne\u0301> wordy word w\u00f6rd word  "
variants={}
def variant(name,pre=None,added=None,norm='keep'):
    k=json.loads(json.dumps(j))
    if pre is not None: k['pre_tokenizer']=pre
    if norm!='keep': k['normalizer']=norm
    for a in added or []: k['added_tokens'].append(a)
    variants[name]={'pre_tokenizer':k['pre_tokenizer'],'normalizer':k['normalizer'],'added_tokens':added or [],'rows':[]}
    t=Tokenizer.from_str(json.dumps(k))
    for s in [alpha,'  '+alpha,'','x',' x','a  b   c','<x>','  <x>  <x>  ','word','wordword word','(word)']:
        variants[name]['rows'].append({'s':s,'ids':t.encode(s,add_special_tokens=False).ids})
bl={'type':'ByteLevel','add_prefix_space':False,'trim_offsets':True,'use_regex':False}
for b in ('Isolated','Removed','MergedWithPrevious','MergedWithNext','Contiguous'):
    for inv in (False,True):
        variant('split %s %s'%(b,inv),{'type':'Sequence','pretokenizers':[{'type':'Split','pattern':{'Regex':'[\\s,]'},'behavior':b,'invert':inv},bl]})
variant('split string',{'type':'Sequence','pretokenizers':[{'type':'Split','pattern':{'String':'-a-'},'behavior':'Isolated','invert':False},bl]})
variant('digits',{'type':'Sequence','pretokenizers':[{'type':'Digits','individual_digits':True},bl]})
variant('digits together',{'type':'Sequence','pretokenizers':[{'type':'Digits','individual_digits':False},bl]})
variant('gpt2 regex',{'type':'ByteLevel','add_prefix_space':False,'trim_offsets':True,'use_regex':True})
variant('prefix space',{'type':'ByteLevel','add_prefix_space':True,'trim_offsets':True,'use_regex':True})
def tok(c,i=1024,**kw):
    d={'id':i,'content':c,'single_word':False,'lstrip':False,'rstrip':False,'normalized':False,'special':False}; d.update(kw); return d
variant('lstrip',added=[tok('<x>',lstrip=True)]); variant('rstrip',added=[tok('<x>',rstrip=True)]); variant('both strip',added=[tok('<x>',lstrip=True,rstrip=True),tok('<y>',1025,lstrip=True)])
variant('single word',added=[tok('word',single_word=True)]); variant('normalized',added=[tok('<N\u00e9>',normalized=True)]); variant('not normalized',added=[tok('<N\u00e9>')]); variant('normalized decomposed',added=[tok('<Ne\u0301>',normalized=True)])
variant('overlap',added=[tok('<x'),tok('<<x>',1025),tok('x>y>',1026)])
variant('no normalizer',norm=None)
variant('sequence normalizer',norm={'type':'Sequence','normalizers':[{'type':'NFC'}]})
# as in allenai/gpt-neox-olmo-dolma-v1_5
variant('runs of spaces',{'type':'ByteLevel','add_prefix_space':False,'trim_offsets':True,'use_regex':True},
        [tok('   ',normalized=True),tok('  ',1025,normalized=True),tok('|||word|||',1026,normalized=True)])
with open('variants.json','w') as f: json.dump(variants,f,ensure_ascii=True,separators=(',',':'))
